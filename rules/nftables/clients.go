package nftables

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// A liveness is a destination that clients of a service port may be remembered with.
type liveness struct{ port, destination string }

// forgets says whether a destination that old had is gone.
func (t Table) forgets(old Table) bool {
	for l := range old.live {
		if !t.live[l] {
			return true
		}
	}
	return false
}

// forget has the kernel forget the clients of destinations that are gone. They are many, and packets change them all the time:
// only afterwards is it certain that no more of them are remembered.
func (d *Dataplane) forget(ctx context.Context, t Table) error {
	elements, err := d.tables[t.Family].ListElements(ctx, "map", clients)
	if err != nil {
		return fmt.Errorf("list clients in table %s: %w", t.name(), err)
	}
	var gone []Element
	for _, e := range elements {
		key, value := strings.Join(e.Key, " . "), strings.Join(e.Value, " . ")
		mark, err := strconv.ParseUint(e.Key[0], 0, 32)
		if err != nil {
			return fmt.Errorf("list clients in table %s: %s: %w", t.name(), key, err)
		}
		if !t.live[liveness{hex(uint32(mark)), value}] {
			gone = append(gone, Element{Key: key, Value: value})
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := d.run(ctx, t.without(clients, gone)); err != nil {
		return fmt.Errorf("forget clients in table %s: %w", t.name(), err)
	}
	return nil
}

// without are the commands that remove elements, each of which may have gone by itself meanwhile: they are added first.
func (t Table) without(set string, elements []Element) []byte {
	s := script{table: t.name()}
	s.add(*t.set(set), elements)
	s.delete(*t.set(set), elements)
	return s.Bytes()
}
