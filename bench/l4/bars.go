package main

import (
	"bytes"
	"fmt"
	"time"
)

// barSize is the number of Services that most bars are set at.
const barSize = 10_000

// bars writes the numbers that were to be reached beside those measured, each as far as this run measured it.
func (r report) bars(b *bytes.Buffer) {
	fmt.Fprintf(b, "## What was to be reached\n\n")
	var rows [][]string
	for _, x := range r.results {
		if x.contender[:len("sally")] == "sally" {
			rows = append(rows, r.barsOf(x)...)
		}
	}
	for _, f := range r.failovers {
		if !f.ownAddress {
			rows = append(rows, []string{"flows that survive their edge", f.name, ">= 99 %", fmt.Sprintf("%.1f %%", 100*float64(f.survived)/float64(f.flows)),
				yes(100*f.survived >= 99*f.flows)})
		}
	}
	if len(rows) == 0 {
		fmt.Fprintf(b, "This run had none of the sizes that the bars are set at.\n")
		return
	}
	table(b, []string{"", "dataplane", "bar", "measured", "reached"}, rows)
}

// barsOf are the bars that one result has something to say to.
func (r report) barsOf(x *result) [][]string {
	var rows [][]string
	add := func(what, bar, measured string, reached bool) {
		rows = append(rows, []string{what, x.contender, bar, measured, yes(reached)})
	}
	if x.services == r.plan.sizes[len(r.plan.sizes)-1] && x.services > barSize {
		add("connect time at "+count(x.services)+" Services against 1", "<= 1.1", ratio(x.worst(), x.reference.p50),
			float64(x.worst()) <= 1.1*float64(x.reference.p50))
	}
	if x.services != barSize {
		return rows
	}
	if k := r.find("kube-proxy iptables", barSize); k != nil && x.contender == "sallyport iptables-nft" {
		add("from nothing, kube-proxy iptables against us", ">= 100", ratio(k.applied(), x.applied()), k.applied() >= 100*x.applied())
	}
	if k := r.find("kube-proxy nftables", barSize); k != nil {
		add("from nothing, kube-proxy nftables against us", ">= 5", ratio(k.applied(), x.applied()), k.applied() >= 5*x.applied())
	}
	const changeBar, memoryBar = 300 * time.Millisecond, 150 << 20
	add("one endpoint, p99", "<= 300 ms", fmt.Sprint(x.change.p99.Round(time.Millisecond)), x.change.p99 <= changeBar)
	if x.churn.n > 0 {
		add("one endpoint under churn, p99", "<= 300 ms", fmt.Sprint(x.churn.p99.Round(time.Millisecond)), x.churn.p99 <= changeBar)
	}
	add("memory", "<= 150 MB", megabytes(x.usage.resident)+" MB", x.usage.resident <= memoryBar)
	add("connections that survive kill -9", fmt.Sprint(r.plan.flows), fmt.Sprint(x.survived), x.survived == r.plan.flows)
	return rows
}

func yes(reached bool) string {
	if reached {
		return "yes"
	}
	return "no"
}

// find is the result of a contender at a number of Services, nil if there is none.
func (r report) find(contender string, services int) *result {
	for _, x := range r.results {
		if x.contender == contender && x.services == services {
			return x
		}
	}
	return nil
}
