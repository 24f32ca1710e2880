package agent

import (
	"fmt"
	"net/netip"
	"sync"
)

// addressPool hands out the pod addresses of one CIDR. It goes round, so that an address rests as long as possible
// before another pod has it: clients and conntrack entries remember the last one.
type addressPool struct {
	cidr    netip.Prefix
	gateway netip.Addr // the CIDR's first address, never handed out

	mu   sync.Mutex
	last netip.Addr
	used map[netip.Addr]bool
}

func newAddressPool(cidr netip.Prefix) *addressPool {
	cidr = cidr.Masked()
	gateway := cidr.Addr().Next()
	return &addressPool{cidr: cidr, gateway: gateway, last: gateway, used: map[netip.Addr]bool{}}
}

// take returns a free address, or an error if there is none.
func (p *addressPool) take() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// One round visits each used address, the gateway and one free address at most.
	for range len(p.used) + 2 {
		p.last = p.after(p.last)
		if p.last != p.gateway && !p.used[p.last] {
			p.used[p.last] = true
			return p.last, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no free address in pod CIDR %v: %d are in use", p.cidr, len(p.used))
}

// after returns the host address that follows a, from the last one round to the gateway.
func (p *addressPool) after(a netip.Addr) netip.Addr {
	next := a.Next()
	broadcast := next.Is4() && !p.cidr.Contains(next.Next())
	if broadcast || !p.cidr.Contains(next) {
		return p.gateway
	}
	return next
}

func (p *addressPool) release(ip netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, ip)
}
