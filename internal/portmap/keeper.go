package portmap

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// renewEvery is how often mappings are renewed that live for longer than twice that: a router that was restarted has
	// forgotten them, one that got another address tells it then. As often as libp2p does by UPnP.
	renewEvery = 20 * time.Second
	// renewLeast keeps a router that grants almost nothing from being asked all the time (RFC 6887 §11.2.1).
	renewLeast = 4 * time.Second
	// returnWithin is how long giving the ports back may take.
	returnWithin = 500 * time.Millisecond
)

// Keeper holds ports open at one router.
type Keeper struct {
	router *Router
	ports  func() []Port

	mu   sync.Mutex
	open map[Port]held
}

type held struct {
	external netip.AddrPort
	until    time.Time
}

// NewKeeper makes one for the ports that ports gives each time.
func NewKeeper(r *Router, ports func() []Port) *Keeper {
	return &Keeper{router: r, ports: ports, open: make(map[Port]held)}
}

// External is where the world reaches a port of ours. The address is the router's, which may be a private one.
func (k *Keeper) External(p Port) (netip.AddrPort, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h, ok := k.open[p]
	return h.external, ok && time.Now().Before(h.until)
}

// Run opens the ports and keeps them open until ctx ends; then it gives them back. It ends early, with the reason, when
// the router holds no wanted port open. Again makes it look at the ports at once; changed is told when another set of
// external addresses is there.
func (k *Keeper) Run(ctx context.Context, again <-chan struct{}, changed func()) error {
	defer k.giveBack()
	for {
		next, err := k.round(ctx, changed)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-again:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// round renews all ports and says when to do so again.
func (k *Keeper) round(ctx context.Context, changed func()) (next time.Duration, err error) {
	next = renewEvery
	now := time.Now()
	k.mu.Lock()
	known := k.open
	k.mu.Unlock()
	after := make(map[Port]held)
	var failures []error
	wanted := k.ports()
	for _, p := range wanted {
		old := known[p]
		m, err := k.router.Map(ctx, p, old.external)
		switch {
		case err == nil && m.External.Port() != 0 && m.External.Addr().IsValid() && !m.External.Addr().IsUnspecified() && m.Life > 0:
			after[p] = held{m.External, now.Add(m.Life)}
			next = max(renewLeast, min(next, m.Life/2))
		case now.Before(old.until): // it may live on
			after[p] = old
			next = renewLeast
		case err == nil:
			failures = append(failures, errors.New("the router has no external address"))
		default:
			failures = append(failures, err)
		}
	}
	k.mu.Lock()
	k.open = after
	k.mu.Unlock()
	unwanted := maps.Clone(known)
	maps.DeleteFunc(unwanted, func(p Port, _ held) bool { return slices.Contains(wanted, p) })
	k.close(unwanted)
	if !maps.EqualFunc(known, after, func(a, b held) bool { return a.external == b.external }) {
		changed()
	}
	if len(after) == 0 && len(wanted) > 0 {
		return 0, errors.Join(failures...)
	}
	return next, nil
}

func (k *Keeper) giveBack() {
	k.mu.Lock()
	open := k.open
	k.open = make(map[Port]held)
	k.mu.Unlock()
	k.close(open)
}

// close has the router close ports, as far as it listens; they would close by themselves.
func (k *Keeper) close(open map[Port]held) {
	ctx, cancel := context.WithTimeout(context.Background(), returnWithin)
	defer cancel()
	var all sync.WaitGroup
	for p := range open {
		all.Go(func() { k.router.Unmap(ctx, p) })
	}
	all.Wait()
}
