package node

import (
	"context"
	"net"
	"slices"
	"time"
)

// lookEvery is how often the interfaces' addresses are compared: there is no portable event, and one
// look costs some ten microseconds.
const lookEvery = 2 * time.Second

// watchNetwork notices a change of network by the interfaces' addresses, and has everything that rests
// on them done again: port mappings, relay connections, reservations, announcements, punches.
func (n *Node) watchNetwork(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	before := interfaceAddrs()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := interfaceAddrs()
		if slices.Equal(before, now) {
			continue
		}
		before = now
		n.networkChanged()
	}
}

func (n *Node) networkChanged() {
	n.log.Info("network changed", "addrs", interfaceAddrs())
	if m := n.addrs.currentMapper(); m != nil {
		n.tasks.start(m.restart)
	}
	n.nat.forget()
	n.wake.send(networkChanged)
	n.announceAgain()
}

// interfaceAddrs are the addresses of the interfaces that are up, sorted; link-local ones come and go
// and lead nowhere.
func interfaceAddrs() []string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []string
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && (ip.IP.IsGlobalUnicast() || ip.IP.IsLoopback()) {
			out = append(out, ip.String())
		}
	}
	slices.Sort(out)
	return out
}
