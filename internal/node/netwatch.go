package node

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// What rests on the network that we are in, and is done again in another one:
//
//  1. dials under way end, for they began at an address of yesterday
//  2. every connection is asked for a sign of life, and closed without; its sessions move on at once
//  3. relays are dialled anew, and reservations made again
//  4. port mappings, the view of our NAT, announcements and punches begin anew
//
// Listening needs nothing: the sockets are bound to no address.

const (
	// tickEvery is how often the clocks are compared and, where the system tells of no changes, the
	// interfaces: one look costs some ten microseconds.
	tickEvery = time.Second
	// settleFor is what follows a first change at once: links, addresses and routes come one by one.
	settleFor = 100 * time.Millisecond
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
	before, last := interfaces(), time.Now()
	for {
		look := changes == nil
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
		}
		if !look && slept == 0 {
			continue
		}
		after := interfaces()
		if slept == 0 && slices.Equal(before, after) {
			continue
		}
		before = after
		n.networkChanged(after)
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

func (n *Node) networkChanged(now []string) {
	n.log.Info("network changed", "now", now)
	n.network.next(n.ctx)
	n.nat.forget()
	n.paths.forgive()
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
func (n *Node) NetworkChanged() { n.networkChanged(interfaces()) }

// interfaces describes the interfaces that lead anywhere: which, plugged in or not, with what addresses,
// and by which gateway. Link-local addresses come and go and lead nowhere.
func interfaces() []string {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	out := gateways()
	for _, i := range ifaces {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		state := ""
		if i.Flags&net.FlagRunning == 0 {
			state = " unplugged"
		}
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
				out = append(out, fmt.Sprintf("%d %s %s%s", i.Index, i.Name, ip, state))
			}
		}
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
