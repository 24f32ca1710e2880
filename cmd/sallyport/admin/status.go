package admin

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sallyport/watcher"
	"sallyport/watcher/model"
)

// A Status is what a running edge says of itself: the answer of /v1/status.
type Status struct {
	Edge      string    `json:"edge"`
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	Dataplane string    `json:"dataplane"`
	Reach     string    `json:"reach"`
	// Waiting says why the edge is not ready, as /readyz does; empty if it is.
	Waiting  string           `json:"waiting,omitempty"`
	Clusters []watcher.Health `json:"clusters"`
	Snapshot Snapshot         `json:"snapshot"`
	Lanes    []Lane           `json:"lanes"`
	Writer   *Writer          `json:"writer,omitempty"`
	Problems []model.Problem  `json:"problems"`
}

// A Snapshot counts what is in the published one.
type Snapshot struct {
	Generation   uint64    `json:"generation"` // 0 before the first
	Published    time.Time `json:"published"`
	Stale        bool      `json:"stale"`
	Nodes        int       `json:"nodes"`
	Services     int       `json:"services"`
	VIPs         int       `json:"vips"`
	Routes       int       `json:"routes"`
	Certificates int       `json:"certificates"`
}

// A Lane is something that follows the snapshots.
type Lane struct {
	Name       string `json:"name"`
	Generation uint64 `json:"generation"`      // that was last applied
	Error      string `json:"error,omitempty"` // of the last reconcile
}

// A Writer says who writes addresses and Events to the cluster.
type Writer struct {
	Leader string `json:"leader,omitempty"` // the holder of the Lease; empty if not known
	Self   bool   `json:"self"`             // it is this edge
}

// Count fills in what a snapshot holds.
func (c *Snapshot) Count(s *model.Snapshot) {
	c.Generation, c.Stale = s.Generation, s.Stale
	c.Nodes, c.Services, c.Routes, c.Certificates = len(s.Nodes), len(s.Services), len(s.Routes), len(s.Certificates)
	for i := range s.Services {
		c.VIPs += len(s.Services[i].VIPs)
	}
}

// WriteText writes the status for people.
func (s *Status) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "edge\t%s, %s, up %s, dataplane %s, reach %s\n", s.Edge, s.Version, age(s.Started), s.Dataplane, s.Reach)
	ready := "yes"
	if s.Waiting != "" {
		ready = "no: " + s.Waiting
	}
	fmt.Fprintf(t, "ready\t%s\n", ready)
	for _, c := range s.Clusters {
		fmt.Fprintf(t, "cluster\t%s\n", clusterText(c))
	}
	fmt.Fprintf(t, "snapshot\t%s\n", s.Snapshot.text())
	for _, l := range s.Lanes {
		fmt.Fprintf(t, "lane %s\t%s\n", l.Name, l.text(s.Snapshot.Generation))
	}
	if s.Writer != nil {
		fmt.Fprintf(t, "writer\t%s\n", s.Writer.text())
	}
	fmt.Fprintf(t, "problems\t%s\n", byReason(s.Problems))
	for _, p := range s.Problems {
		fmt.Fprintf(t, "\t%s\n", p)
	}
	return t.Flush() // holds the first error of all the writes above
}

func clusterText(c watcher.Health) string {
	words := []string{c.Server}
	if c.Cluster != "" {
		words[0] = c.Cluster + " at " + c.Server
	}
	switch {
	case c.Up:
		words = append(words, "up")
	case c.LastContact.IsZero():
		words = append(words, "has not answered yet")
	default:
		words = append(words, "away, last answered "+age(c.LastContact)+" ago")
	}
	if c.Stale {
		words = append(words, "served from "+c.File+" of "+age(c.Written)+" ago")
	}
	if c.LastError != "" {
		words = append(words, c.LastError)
	}
	if !c.CredentialExpiry.IsZero() {
		words = append(words, "credentials valid until "+c.CredentialExpiry.UTC().Format(time.DateOnly))
	}
	return strings.Join(words, ", ")
}

func (c Snapshot) text() string {
	if c.Generation == 0 {
		return "none yet"
	}
	stale := ""
	if c.Stale {
		stale = ", stale"
	}
	return fmt.Sprintf("generation %d, %s old%s: %d nodes, %d Services, %d VIPs, %d routes, %d certificates",
		c.Generation, age(c.Published), stale, c.Nodes, c.Services, c.VIPs, c.Routes, c.Certificates)
}

func (l Lane) text(published uint64) string {
	text := fmt.Sprintf("generation %d applied", l.Generation)
	if l.Generation < published {
		text = fmt.Sprintf("generation %d applied, %d published", l.Generation, published)
	}
	if l.Error != "" {
		text += "; " + strings.ReplaceAll(l.Error, "\n", "; ")
	}
	return text
}

func (w Writer) text() string {
	switch {
	case w.Self:
		return "this edge writes addresses and Events to the cluster"
	case w.Leader != "":
		return w.Leader + " writes addresses and Events to the cluster"
	default:
		return "nobody holds the Lease: addresses and Events are not written to the cluster"
	}
}

// byReason counts the problems: "2 PortConflict, 1 Unsupported".
func byReason(list []model.Problem) string {
	count := map[model.Reason]int{}
	var reasons []model.Reason
	for _, p := range list {
		if count[p.Reason]++; count[p.Reason] == 1 {
			reasons = append(reasons, p.Reason)
		}
	}
	if len(reasons) == 0 {
		return "none"
	}
	slices.Sort(reasons)
	var out []string
	for _, r := range reasons {
		out = append(out, fmt.Sprintf("%d %s", count[r], r))
	}
	return strings.Join(out, ", ")
}

// age is the time since t, without more precision than a person wants.
func age(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return d.Round(time.Minute).String()
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}
