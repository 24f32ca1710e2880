package explain

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"sallyport/watcher/model"
)

// WriteText writes the explanation for people: the verdict in a line, then what is gone through, where it leads, what is
// wrong and what to do.
func (e *Explanation) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%s: %s\n%s\n", e.Target, strings.ToUpper(string(e.Verdict)), e.Summary)
	if len(e.Steps) > 0 {
		fmt.Fprintln(b)
	}
	for _, s := range e.Steps {
		fmt.Fprintf(b, "  %-12s %s\n", s.What, s.Detail)
	}
	for _, x := range e.Backends {
		x.writeText(b)
	}
	section(b, "problems", e.Problems, Problem.text)
	section(b, "hints", e.Hints, func(h string) string { return h })
	return b.Flush() // holds the first error of all the writes above
}

// section writes a heading and a line for each item, or nothing without items.
func section[T any](w io.Writer, title string, items []T, text func(T) string) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\n", title)
	for _, x := range items {
		fmt.Fprintf(w, "  - %s\n", text(x))
	}
}

func (p Problem) text() string {
	if p.Field == "" {
		return fmt.Sprintf("%s: %s (%s)", p.Object, p.Message, p.Reason)
	}
	return fmt.Sprintf("%s: %s: %s (%s)", p.Object, p.Field, p.Message, p.Reason)
}

func (b *Backend) writeText(w io.Writer) {
	share := ""
	if b.Percent > 0 && b.Percent < 100 {
		share = fmt.Sprintf(", %d %% of the requests", b.Percent)
	}
	port := model.ServicePort{Name: b.Name, Port: b.Port, Protocol: b.Protocol}
	fmt.Fprintf(w, "\n%s port %s%s\n", b.Service, portName(&port), share)
	for _, d := range b.Destinations {
		weight := ""
		if d.Weight != 0 {
			weight = fmt.Sprintf(", weight %d", d.Weight)
		}
		fmt.Fprintf(w, "  -> %-22s reach %s%s%s\n", d.Address, d.Reach, weight, place(d.Pod, d.Node, d.Zone))
	}
	if len(b.Destinations) == 0 {
		fmt.Fprintln(w, "  -> nothing")
	}
	for _, x := range b.Unused {
		fmt.Fprintf(w, "  not %-21s %s%s\n", x.Address, x.Why, place(x.Pod, x.Node, x.Zone))
	}
}

// place says where a destination or endpoint is.
func place(pod, node, zone string) string {
	var b strings.Builder
	for _, v := range [][2]string{{"pod", pod}, {"node", node}, {"zone", zone}} {
		if v[1] != "" {
			b.WriteString(", " + v[0] + " " + v[1])
		}
	}
	return b.String()
}
