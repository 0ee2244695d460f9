package node

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What rests on the network that we are in, and is done again in another one:
//
//  1. dials under way end, for they began at an address of yesterday
//  2. every connection is asked for a sign of life, and closed without; its sessions move on at once
//  3. relays are dialled anew, and reservations made again
//  4. port mappings, the view of our NAT, announcements and punches begin anew
//
// Listening needs nothing: the sockets are bound to no address. An interface by which nothing of ours leaves, such as a
// container's, may come and go as it likes: its addresses are announced, and that is all.

const (
	// tickEvery is how often the clocks are compared and, where the system tells of no changes, the
	// interfaces: one look costs some ten microseconds.
	tickEvery = time.Second
	// settleFor is what follows a first change at once: links, addresses and routes come one by one.
	settleFor = 100 * time.Millisecond
	// changesAtOnce changes are followed as they come, then one each changesEvery: an interface that comes and goes all the
	// time would have everything begun anew and nothing ended.
	changesAtOnce, changesEvery = 4, 5 * time.Second
	// sleptFor is how far the clocks may drift apart, or a tick be late, before the machine has slept.
	sleptFor = 5 * time.Second
)

// watchNetwork notices a change of network, and that the machine has slept, until ctx ends.
func (n *Node) watchNetwork(ctx context.Context) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var listening sync.WaitGroup
	defer listening.Wait()
	changes := interfaceChanges(ctx, &listening) // nil: nobody tells
	pace := rate.NewLimiter(rate.Every(changesEvery), changesAtOnce)
	before, last := n.surroundings(), time.Now()
	due, woken := false, false // a change is to be followed; the machine has slept
	for {
		look := changes == nil || due
		select {
		case <-changes:
			if !sleep(ctx, settleFor) {
				return
			}
			look = true
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		slept := slept(last, now)
		last = now
		if slept > 0 {
			n.log.Info("the machine has slept", "for", slept.Round(time.Second))
			woken = true
		}
		if !look && !woken {
			continue
		}
		after := n.surroundings()
		what := before.compare(after, n.leavingFrom())
		if woken {
			what = wayGone
		}
		if due = what >= wayCame && !pace.Allow(); due {
			continue // what it is by then counts
		}
		before, woken = after, false
		switch {
		case what >= wayCame:
			n.networkChanged(after, what == wayGone)
		case what == besides:
			n.log.Debug("an interface changed by which nothing goes", "now", after.lines())
			n.announceAgain()
		}
	}
}

// slept is how long the machine was asleep or stopped between two readings of the clock, 0 if it was
// not. Some systems' monotonic clock stands still meanwhile, others' goes on and the tick is late. A step
// of the wall clock looks the same and costs some dials.
func slept(before, now time.Time) time.Duration {
	monotonic := now.Sub(before)
	wall := now.Round(0).Sub(before.Round(0))
	if wall-monotonic > sleptFor || monotonic > tickEvery+sleptFor {
		return max(wall, monotonic)
	}
	return 0
}

// networkChanged has all that rests on the network done again; dials under way end if something that they may rest on is
// gone.
func (n *Node) networkChanged(now surroundings, gone bool) {
	n.log.Info("network changed", "now", now.lines())
	if gone {
		n.network.next(n.ctx)
	}
	n.nat.forget()
	n.paths.forgive()
	n.forgetPunches()
	n.dials.networkChanged() // relays are dialled anew by what follows
	n.wake.send(networkChanged)
	for _, p := range n.Connected() {
		n.tasks.start(func() { n.checkLinks(p) })
	}
	if m := n.addrs.currentMapper(); m != nil {
		n.tasks.start(m.restart)
	}
	n.announceAgain()
}

// NetworkChanged has all that rests on the network done again, as if a change had been noticed.
func (n *Node) NetworkChanged() { n.networkChanged(n.surroundings(), true) }

// surroundings are the interfaces that lead anywhere, and by which of them packets leave.
type surroundings struct {
	gateways map[string]bool           // default routes: "eth0 192.0.2.1"
	ifaces   map[ifaceAddr]bool        // up, with their addresses
	toRelays map[netip.Addr]netip.Addr // from which address of ours packets to a relay's leave
}

// ifaceAddr is one address of an interface.
type ifaceAddr struct {
	index   int
	name    string
	prefix  netip.Prefix
	plugged bool
}

func (i ifaceAddr) String() string {
	state := ""
	if !i.plugged {
		state = " unplugged"
	}
	return fmt.Sprintf("%d %s %s%s", i.index, i.name, i.prefix, state)
}

// surroundings looks at them. Link-local addresses come and go and lead nowhere.
func (n *Node) surroundings() surroundings {
	s := surroundings{gateways: make(map[string]bool), ifaces: make(map[ifaceAddr]bool), toRelays: make(map[netip.Addr]netip.Addr)}
	for _, g := range gateways() {
		s.gateways[g] = true
	}
	for _, r := range n.cfg.Relays() {
		at := slices.Clone(r.Addrs)
		for _, l := range n.paths.links(r.ID) { // where its name led to
			at = append(at, l.conn.RemoteMultiaddr())
		}
		for _, a := range at {
			if !isIP(a) {
				continue
			}
			if to, ok := addrPortOf(a); ok { // else a name
				s.toRelays[to.Addr()] = Outgoing(to)
			}
		}
	}
	ifaces, _ := net.Interfaces()
	for _, i := range ifaces {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
				s.ifaces[ifaceAddr{i.Index, i.Name, p, i.Flags&net.FlagRunning != 0}] = true
			}
		}
	}
	return s
}

// leavingFrom are the addresses of ours that direct connections left from when they were made.
func (n *Node) leavingFrom() map[netip.Addr]bool {
	from := make(map[netip.Addr]bool)
	for _, p := range n.Connected() {
		for _, l := range n.paths.links(p) {
			from[l.from] = true
		}
	}
	return from
}

// change is what a change of the surroundings means.
type change int

const (
	nothing change = iota
	besides        // of interfaces by which nothing of ours goes: a container started, or a virtual machine
	wayCame        // there is another way out
	wayGone        // one that was there is gone
)

// compare says what became of before. Packets may leave by an interface with a default route, by one from which packets
// to a relay leave, or connections do (leaving); where there is no such interface, by any.
func (before surroundings) compare(after surroundings, leaving map[netip.Addr]bool) change {
	ways := make(map[string]bool) // interfaces, by name
	for _, s := range []surroundings{before, after} {
		for g := range s.gateways {
			name, _, _ := strings.Cut(g, " ")
			ways[name] = true
		}
		from := maps.Clone(leaving)
		for _, a := range s.toRelays {
			from[a] = true
		}
		for i := range s.ifaces {
			if from[i.prefix.Addr().Unmap()] {
				ways[i.name] = true
			}
		}
	}
	is := func(i ifaceAddr) change {
		if len(ways) == 0 || ways[i.name] {
			return wayCame
		}
		return besides
	}
	what := nothing
	for i := range after.ifaces {
		if !before.ifaces[i] {
			what = max(what, is(i))
		}
	}
	for i := range before.ifaces {
		if !after.ifaces[i] {
			if what = max(what, is(i)); is(i) == wayCame {
				what = wayGone
			}
		}
	}
	for g := range after.gateways {
		if !before.gateways[g] {
			what = max(what, wayCame)
		}
	}
	for g := range before.gateways {
		if !after.gateways[g] {
			what = wayGone
		}
	}
	for to, from := range before.toRelays {
		if now, ok := after.toRelays[to]; ok && now != from {
			if what = max(what, wayCame); !now.IsValid() {
				what = wayGone
			}
		}
	}
	return what
}

// lines are for the log.
func (s surroundings) lines() []string {
	var out []string
	for g := range s.gateways {
		out = append(out, "via "+g)
	}
	for i := range s.ifaces {
		out = append(out, i.String())
	}
	slices.Sort(out)
	return out
}

// networkView is the network that we are in, as a context that ends with it.
type networkView struct {
	mu      sync.Mutex
	current context.Context
	leave   context.CancelFunc
}

func (v *networkView) begin(ctx context.Context) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.current, v.leave = context.WithCancel(ctx)
}

// next ends the present network.
func (v *networkView) next(ctx context.Context) {
	v.mu.Lock()
	leave := v.leave
	v.mu.Unlock()
	v.begin(ctx)
	leave()
}

// ctx ends when the network changes, or the node does.
func (v *networkView) ctx() context.Context {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current
}
