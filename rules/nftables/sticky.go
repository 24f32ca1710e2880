package nftables

import (
	"strconv"
	"time"

	"sallyport/rules/plan"
)

// A service port that keeps clients with their endpoints (plan.Target.Sticky) has its slots lead to marks, and marks to endpoints:
// a client's mark is remembered when its connection has one, and asked for before a slot is calculated.

// stick adds an entry that keeps its clients. key is that of the entry.
func (r *renderer) stick(at *place, key string, t *plan.Target) {
	port := r.stickyPort(t)
	r.add(at.stickyPorts, key, hex(port))
	for slot, i := range table(t.Destinations) {
		r.add(at.stickySlots, key+" . "+strconv.Itoa(slot), hex(r.marks.endpoint(port, t.Destinations[i])))
	}
}

// stickyPort is the mark of a service port that keeps its clients, whose endpoints it writes.
func (r *renderer) stickyPort(t *plan.Target) uint32 {
	mark, isNew := r.marks.port(r.Options, t)
	if !isNew {
		return mark
	}
	r.add(timeouts, hex(mark), "jump "+r.remember(seconds(t.Sticky())))
	for _, d := range t.Destinations {
		r.add(stickyEndpoints, hex(r.marks.endpoint(mark, d)), destination(d))
	}
	return mark
}

// remember is the chain that has a client kept with the endpoint that the mark stands for.
func (r *renderer) remember(timeout string) (chain string) {
	chain = "remember-" + timeout
	r.chain(chain, "", "update @"+clients+" { meta mark and "+hex(portMask)+" . "+r.client()+" timeout "+timeout+" : meta mark }")
	return chain
}

// sticky are the rules that choose an endpoint for a client. One that is gone is forgotten.
func (r *renderer) sticky(t treatment, key, choose string) []string {
	dnat := "meta l4proto " + t.proto + " dnat " + r.ip + " to meta mark map @" + stickyEndpoints
	return []string{
		"meta mark set " + key + " map @" + t.at.stickyPorts,
		"meta mark set meta mark . " + r.client() + " map @" + clients,
		dnat,
		"delete @" + clients + " { meta mark and " + hex(portMask) + " . " + r.client() + " : meta mark }",
		"meta mark set " + key + " . " + choose + t.at.stickySlots,
		dnat,
	}
}

// client is the client's address as a key of clients. nft 1.0.6 gets the registers wrong where the key of a map that packets fill
// is longer than 16 bytes: of IPv6 it is a hash. That two clients fall on the same one only has them kept together.
func (r *renderer) client() string {
	if r.Family == plan.IPv4 {
		return "ip saddr"
	}
	return "jhash ip6 saddr mod 4294967295 seed " + hex(r.HashSeed)
}

// maxTimeout is the most that the API takes (core/v1 ClientIPConfig.timeoutSeconds). nft refuses what is much more.
const maxTimeout = 24 * time.Hour

// seconds spells a timeout, rounded up.
func seconds(d time.Duration) string {
	d = min(d, maxTimeout)
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10) + "s"
}
