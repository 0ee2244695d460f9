package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"fwd/identity"
	"fwd/relaynode"
)

// relayPort is where a relay listens, UDP and TCP: libp2p's customary port.
const relayPort = 4001

// A relayPlan is a RelayRequest understood.
type relayPlan struct {
	req      RelayRequest
	listen   []ma.Multiaddr
	announce []ma.Multiaddr
	limits   relaynode.Limits
}

// metrics is where a relay that was kept served them.
func (p *relayPlan) metrics() string {
	if p == nil {
		return ""
	}
	return p.req.Metrics
}

// planRelay parses the request and refuses a machine that nobody could reach.
func planRelay(req RelayRequest) (*relayPlan, error) {
	if invite, err := identity.ParseInvite(req.Invite); err == nil {
		if at, waits := invite.Waits(); waits {
			req = req.at(at)
		}
	}
	plan := &relayPlan{req: req}
	words := req.Listen
	if len(words) == 0 {
		words = []string{strconv.Itoa(relayPort)}
	}
	for _, w := range words {
		addrs, err := listenAddrs(w)
		if err != nil {
			return nil, err
		}
		plan.listen = append(plan.listen, addrs...)
	}
	for _, w := range req.Announce {
		addrs, err := announceListened(w, plan.listen)
		if err != nil {
			return nil, err
		}
		plan.announce = append(plan.announce, addrs...)
	}
	if len(plan.announce) == 0 && !listensPublic(plan.listen) {
		return nil, usage("fwd relay --announce HOST (its public address or, better, a domain name)",
			"this machine has only private addresses, so its public one must be told (most clouds translate 1:1)")
	}
	return plan, nil
}

// at fills in what an invite says of where its relay waits.
func (r RelayRequest) at(addrs []ma.Multiaddr) RelayRequest {
	if len(r.Announce) == 0 {
		r.Announce = words(addrs)
	}
	if len(r.Listen) > 0 {
		return r
	}
	for _, a := range addrs {
		if _, end := ma.SplitFirst(a); len(end) > 0 {
			r.Listen = append(r.Listen, "/ip4/0.0.0.0"+end.String(), "/ip6/::"+end.String())
		}
	}
	return r
}

// listensPublic: at least one address that the relay listens on is reachable
// from the internet as it is.
func listensPublic(listen []ma.Multiaddr) bool {
	for _, a := range listen {
		if !manet.IsIPUnspecified(a) {
			if manet.IsPublicAddr(a) {
				return true
			}
			continue
		}
		ifaces, err := manet.InterfaceMultiaddrs()
		if err != nil {
			return false
		}
		for _, i := range ifaces {
			if manet.IsPublicAddr(i) {
				return true
			}
		}
	}
	return false
}

// runRelay is the foreground's wish: a network to relay for (made, joined, or
// the one of last time), our addresses on its roster, and the story told.
func (d *Daemon) runRelay(ctx context.Context, plan *relayPlan, emit func(Event)) error {
	if err := d.relayNetwork(ctx, plan, emit); err != nil {
		return err
	}
	addrs := bestAddrs(identity.MaxAddrs, d.node.ReachableAddrs(), plan.announce, routedAddrs())
	told, err := d.announceRelay(ctx, addrs)
	if err != nil {
		return err
	}
	if !told {
		emit(Event{Event: "progress", Message: "the network's owner is away: peers learn this relay's address when it is back"})
	}
	d.relay.Refresh()
	if plan.req.Keep {
		if err := d.keepRelay(plan.req); err != nil {
			return err
		}
	}
	roster, err := d.roster()
	if err != nil {
		return err
	}
	emit(Event{Event: "relay", Peer: d.self.String(), Machine: d.nameOf(d.self), Message: roster.Name, Addrs: words(addrs)})
	if d.onlyOurs(roster) {
		// First start: the first machine is the admin's own.
		err := d.invite(ctx, InviteRequest{Uses: plan.req.Uses, Admin: true}, emit)
		if err != nil {
			return err
		}
	}
	return d.announceUntilTold(ctx, addrs, told)
}

// announceUntilTold announces again until the owner has heard: it may be unable
// to be dialled, and come by itself, by `fwd join --at` or the new roster.
func (d *Daemon) announceUntilTold(ctx context.Context, addrs []ma.Multiaddr, told bool) error {
	tick := time.NewTicker(announceLook)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		roster := d.book.Current()
		if told || roster == nil || !slices.Contains(d.node.Connected(), roster.Owner) && time.Since(last) < announceAnyway {
			continue
		}
		last = time.Now()
		var err error
		if told, err = d.announceRelay(ctx, addrs); err != nil {
			d.log.Warn("announce this relay", "err", err)
		}
	}
}

const (
	// announceLook is how often a relay whose owner was away looks whether it is back,
	// announceAnyway how often it goes looking for it.
	announceLook   = time.Second
	announceAnyway = time.Minute
)

func (d *Daemon) relayNetwork(ctx context.Context, plan *relayPlan, emit func(Event)) error {
	if plan.req.Invite != "" {
		return d.join(ctx, JoinRequest{Invite: plan.req.Invite, As: plan.req.Name}, emit)
	}
	_, err := d.ensureNetwork(plan.req.Name, identity.Member|identity.Relay)
	return err
}

// announceRelay has our addresses put on the roster: by ourselves as the
// owner, else by asking it. An owner that is away leaves the old ones standing;
// then told is false.
func (d *Daemon) announceRelay(ctx context.Context, addrs []ma.Multiaddr) (told bool, err error) {
	roster, err := d.roster()
	if err != nil {
		return false, err
	}
	e, _ := roster.Entry(d.self)
	if e.Caps&identity.Relay == 0 && roster.Owner != d.self {
		return false, fail(ExitRefused, "refused", "on "+d.admins(roster)+": fwd invite --relay", "this machine (%s) may not relay in %q", e.Name, roster.Name)
	}
	for _, r := range roster.Relays {
		if r.Peer == d.self && sameAddrs(r.Addrs, addrs) {
			return true, nil
		}
	}
	info := identity.RelayInfo{Peer: d.self, Addrs: addrs}
	if owner := d.currentOwner(); owner != nil {
		if err := owner.SetRelay(info, d.now()); err != nil {
			return false, fmt.Errorf("put this relay on the roster: %w", err)
		}
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	err = d.ask(ctx, roster.Owner, "announce", AnnounceRequest{Addrs: words(addrs)}, func(Event) {})
	var f *Failure
	if errors.As(err, &f) && f.Exit == ExitUnreachable {
		return false, nil
	}
	return err == nil, err
}

// AnnounceRequest is a relay asking the owner to put its addresses on the roster.
type AnnounceRequest struct {
	Addrs []string `json:"addrs"`
}

// grantAnnounce is the owner's half.
func (d *Daemon) grantAnnounce(owner *identity.Owner, p peer.ID, req AnnounceRequest) error {
	info := identity.RelayInfo{Peer: p}
	for _, w := range req.Addrs {
		a, err := ma.NewMultiaddr(w)
		if err != nil {
			return fmt.Errorf("read the relay's address: %w", err)
		}
		info.Addrs = append(info.Addrs, a)
	}
	return owner.SetRelay(info, d.now())
}

func sameAddrs(a, b []ma.Multiaddr) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].Equal(b[i]) {
			return false
		}
	}
	return true
}

// yieldToForeground ends an idle background daemon of this home, so that a
// command before `fwd relay` or `fwd up` does not bar it.
func yieldToForeground(ctx context.Context, home Home) error {
	c, err := reach(ctx, home)
	if errors.Is(err, ErrNoDaemon) {
		return nil
	} else if err != nil {
		return err
	}
	pid := c.Greeting.PID
	if err := c.Call(ctx, StopRequest{IfIdle: true}, nil); err != nil {
		var f *Failure
		if errors.As(err, &f) {
			return fail(ExitFailed, "already-running", "end it first: fwd stop", "fwd already runs in %s (process %d) and is in use", home.State, pid)
		}
	}
	// Its lock goes when the process does.
	for wait := time.Now().Add(stopTimeout); time.Now().Before(wait) && ctx.Err() == nil; {
		c, err := reach(ctx, home)
		if errors.Is(err, ErrNoDaemon) {
			return nil
		}
		if err == nil {
			c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// stopTimeout is how long a daemon may take to end its sessions and go.
const stopTimeout = 10 * time.Second
