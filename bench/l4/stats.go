package main

import (
	"slices"
	"time"
)

// A sample is a measured distribution.
type sample struct {
	p50, p99 time.Duration
	n        int // how many values it is made of
}

// summarize takes the percentiles of the values. Those of few values are the nearest value above: the 99th of 20 is the largest.
func summarize(values []time.Duration) sample {
	if len(values) == 0 {
		return sample{}
	}
	sorted := slices.Sorted(slices.Values(values))
	at := func(percent int) time.Duration { return sorted[min(len(sorted)-1, len(sorted)*percent/100)] }
	return sample{p50: at(50), p99: at(99), n: len(sorted)}
}

// median is the middle one of the values: of an even number, the lower of the two.
func median(values []time.Duration) time.Duration {
	if len(values) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(values))[(len(values)-1)/2]
}

// medianOf joins the samples of several rounds: a round that something disturbed does not count.
func medianOf(rounds []sample) sample {
	var p50, p99 []time.Duration
	n := 0
	for _, r := range rounds {
		p50, p99, n = append(p50, r.p50), append(p99, r.p99), n+r.n
	}
	return sample{p50: median(p50), p99: median(p99), n: n}
}
