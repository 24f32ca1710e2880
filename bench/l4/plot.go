package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"time"
)

// A curve is a contender's line in a chart.
type curve struct {
	name string
	at   []point
}

type point struct {
	services int
	value    time.Duration
}

// A chart is one diagram of the plot.
type chart struct {
	title, unit string
	in          time.Duration // the unit
	logarithmic bool          // the axis of values
	curves      []curve
}

// Measures of a chart, in pixels.
const (
	chartWidth, chartHeight = 560, 380
	chartLeft, chartRight   = 64, 36
	chartTop, chartBottom   = 44, 52
	legendLine              = 22
)

// colours are told apart by most who cannot tell all colours apart (Okabe and Ito, 2008); dashes tell kube-proxy from us.
var colours = []string{"#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7"}

// plot draws connect time and the time from nothing against the number of Services.
func (r report) plot() []byte {
	charts := []chart{
		{title: "Connect time to the worst-placed Service, p50", unit: "µs", in: time.Microsecond,
			curves: r.curves(func(x *result) time.Duration { return x.worst() })},
		{title: "From nothing to the first connection", unit: "s", in: time.Second, logarithmic: true,
			curves: r.curves(func(x *result) time.Duration { return x.first() })},
	}
	var b bytes.Buffer
	height := chartHeight + legendLine*(1+len(charts[0].curves)/3) + 16
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13" fill="#222">`+"\n", 2*chartWidth, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	for i, c := range charts {
		fmt.Fprintf(&b, `<g transform="translate(%d 0)">`+"\n", i*chartWidth)
		c.draw(&b, r.plan.sizes)
		b.WriteString("</g>\n")
	}
	legend(&b, charts[0].curves)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// curves are the contenders' values, in the order that they first appear.
func (r report) curves(value func(*result) time.Duration) []curve {
	var all []curve
	for _, x := range r.results {
		i := slices.IndexFunc(all, func(c curve) bool { return c.name == x.contender })
		if i < 0 {
			i, all = len(all), append(all, curve{name: x.contender})
		}
		all[i].at = append(all[i].at, point{x.services, value(x)})
	}
	return all
}

// style is how the i-th contender is drawn.
func style(i int, name string) string {
	dashes := ""
	if name[:len("kube")] == "kube" {
		dashes = ` stroke-dasharray="6 4"`
	}
	return fmt.Sprintf(`stroke="%s" stroke-width="2" fill="none"%s`, colours[i%len(colours)], dashes)
}

func legend(b *bytes.Buffer, curves []curve) {
	for i, c := range curves {
		x, y := chartLeft+(i%3)*360, chartHeight+legendLine*(i/3)+14
		fmt.Fprintf(b, `<line x1="%d" y1="%d" x2="%d" y2="%d" %s/><text x="%d" y="%d">%s</text>`+"\n", x, y-4, x+36, y-4, style(i, c.name), x+44, y, c.name)
	}
}

// draw draws axes and curves. Services stand on a logarithmic axis.
func (c chart) draw(b *bytes.Buffer, sizes []int) {
	low, high, ticks := c.scale()
	y := func(value float64) float64 {
		if c.logarithmic {
			value, low, high := math.Log(value), math.Log(low), math.Log(high)
			return chartHeight - chartBottom - (value-low)/(high-low)*(chartHeight-chartTop-chartBottom)
		}
		return chartHeight - chartBottom - (value-low)/(high-low)*(chartHeight-chartTop-chartBottom)
	}
	span := math.Log(float64(max(2, sizes[len(sizes)-1])) / float64(sizes[0]))
	x := func(services int) float64 {
		return chartLeft + math.Log(float64(services)/float64(sizes[0]))/span*(chartWidth-chartLeft-chartRight)
	}
	fmt.Fprintf(b, `<text x="%d" y="24" font-size="15">%s, %s</text>`+"\n", chartLeft, c.title, c.unit)
	for _, t := range ticks {
		fmt.Fprintf(b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
			chartLeft, y(t), chartWidth-chartRight, y(t), chartLeft-8, y(t)+4, t)
	}
	for _, n := range sizes {
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(n), chartHeight-chartBottom+20, count(n))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">Services</text>`+"\n", (chartLeft+chartWidth-chartRight)/2, chartHeight-chartBottom+40)
	for i, curve := range c.curves {
		var line bytes.Buffer
		for _, p := range curve.at {
			at := y(c.value(p))
			fmt.Fprintf(&line, "%.1f,%.1f ", x(p.services), at)
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", x(p.services), at, colours[i%len(colours)])
		}
		fmt.Fprintf(b, `<polyline points="%s" %s/>`+"\n", bytes.TrimSpace(line.Bytes()), style(i, curve.name))
	}
}

// value is a point's in the chart's unit.
func (c chart) value(p point) float64 { return float64(p.value) / float64(c.in) }

// scale is the axis of values, with its ticks: from 0 in even steps, or in powers of ten around all values.
func (c chart) scale() (low, high float64, ticks []float64) {
	least, most := math.Inf(1), 0.0
	for _, curve := range c.curves {
		for _, p := range curve.at {
			least, most = min(least, c.value(p)), max(most, c.value(p))
		}
	}
	if c.logarithmic {
		low, high = math.Pow(10, math.Floor(math.Log10(least))), math.Pow(10, math.Ceil(math.Log10(most)))
		for t := low; t <= high*1.01; t *= 10 {
			ticks = append(ticks, t)
		}
		return low, high, ticks
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for most/step < 4 {
		step /= 2
	}
	for high < most {
		ticks, high = append(ticks, high), high+step
	}
	return 0, high, append(ticks, high)
}
