package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/errgroup"

	"fwd/forward"
	"fwd/identity"
)

// What a peer exposes is asked of the peer itself, which names only what the
// asker may use: nobody else knows, so nobody else can tell.

const servicesProtocol = protocol.ID("/fwd/services/1")

// servicesTimeout bounds one question over a path that is up.
const servicesTimeout = 10 * time.Second

func (d *Daemon) serveServices(s network.Stream) {
	defer s.Close()
	s.SetDeadline(time.Now().Add(servicesTimeout))
	p := s.Conn().RemotePeer()
	var reply identity.ServicesMsg
	d.mu.Lock()
	type offered struct {
		name string
		udp  bool
		more int
	}
	services := make([]offered, 0, len(d.services))
	for _, svc := range d.services {
		services = append(services, offered{svc.name, svc.target.UDP(), svc.target.More})
	}
	d.mu.Unlock()
	for _, svc := range services {
		if first, err := d.lookupNew(p, svc.name, svc.udp); err == nil {
			info := identity.ServiceInfo{Name: svc.name, Port: uint16(first.Port()), UDP: svc.udp}
			if svc.more > 0 {
				info.Last = info.Port + uint16(svc.more)
			}
			reply.Services = append(reply.Services, info)
		}
	}
	slices.SortFunc(reply.Services, func(a, b identity.ServiceInfo) int { return cmp.Compare(a.Name, b.Name) })
	if identity.WriteMsg(s, reply) != nil {
		s.Reset()
	}
}

// offers are what a peer exposed for us when it was asked.
type offers struct {
	services []identity.ServiceInfo
	asked    time.Time
}

// askServices: what may we use at p? It dials if need be.
func (d *Daemon) askServices(ctx context.Context, p peer.ID) ([]identity.ServiceInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, servicesTimeout)
	defer cancel()
	if err := d.node.Connect(ctx, p); err != nil {
		return nil, err
	}
	s, err := d.node.Host().NewStream(network.WithAllowLimitedConn(ctx, "services"), p, servicesProtocol)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its services: %w", d.nameOf(p), err)
	}
	defer s.Close()
	deadline, _ := ctx.Deadline()
	s.SetDeadline(deadline)
	s.CloseWrite() // sends the protocol's name, which waits for a first write
	var reply identity.ServicesMsg
	if err := identity.ReadMsg(s, identity.MaxServicesMsg, &reply); err != nil {
		s.Reset()
		return nil, fmt.Errorf("ask %s for its services: %w", d.nameOf(p), err)
	}
	if err := reply.Check(); err != nil {
		return nil, fmt.Errorf("ask %s for its services: %w", d.nameOf(p), err)
	}
	d.mu.Lock()
	d.offered[p] = offers{reply.Services, time.Now()}
	d.mu.Unlock()
	return reply.Services, nil
}

// awaitServices is askServices of a peer that is waited for until ctx ends.
func (d *Daemon) awaitServices(ctx context.Context, p peer.ID) ([]identity.ServiceInfo, error) {
	for {
		services, err := d.askServices(ctx, p)
		if err == nil {
			return services, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(askAgain):
		}
	}
}

// askAgain is the pause before a peer that was not reached is asked again: short beside what reaching one takes.
const askAgain = 200 * time.Millisecond

// checkService fails with a refusal if the peer answers and does not offer f's
// service to us, in the way that is wanted.
func (d *Daemon) checkService(ctx context.Context, f *forwarding, local forward.Local) (offer, error) {
	offered, err := d.askServices(ctx, f.peer())
	if err != nil {
		return offer{}, err
	}
	o := offerOf(offered, f.service)
	machine, what := d.nameOf(f.peer()), strconv.Quote(f.service)
	switch {
	case local.UDP() && !o.udp && o.tcp:
		what += " for UDP"
	case (local.Network() == "unix" || local.Stdio()) && !o.tcp && o.udp:
		return o, usage("fwd connect "+f.word+" PORT", "%s takes datagrams, which only a port can carry", f.word)
	case !o.none():
		return o, nil
	}
	if s := d.book.Current(); o.none() && s != nil && f.word == f.service && s.Services[f.service] == f.peer() {
		// A peer that we may not use something of does not say which of the two it is.
		return o, fail(ExitRefused, "refused", d.offerHint(f), "%s is held by %s, which does not expose it now, or not to this machine", f.service, machine)
	}
	return o, fail(ExitRefused, "refused", d.offerHint(f),
		"%s exposes no %s that this machine may use", machine, what)
}

// askOffer is what the service is, if the peer tells in time: for what to listen, at
// which port if that can be chosen, and how it will be used.
func (d *Daemon) askOffer(ctx context.Context, f *forwarding) offer {
	ctx, cancel := context.WithTimeout(ctx, portWait)
	defer cancel()
	offered, err := d.askServices(ctx, f.peer())
	if err != nil {
		return offer{}
	}
	return offerOf(offered, f.service)
}

// portWait: about what a cold start over a relay takes (docs/bench.md). A nicer
// line is worth that, and an offline peer must not hold it up for longer.
const portWait = time.Second

// lsWait is how long ls waits for a peer that is on the roster and silent.
const lsWait = 3 * time.Second

// ls lists what this machine may use: it asks every peer that may expose. One
// that is away is known by the short names the roster has of it.
func (d *Daemon) ls(ctx context.Context, emit func(Event)) error {
	roster, err := d.roster()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lsWait)
	defer cancel()
	var mu sync.Mutex
	list := []LsEntry{}
	var g errgroup.Group
	g.SetLimit(64) // peers asked at a time
	for _, e := range roster.Entries {
		if e.Peer == d.self || e.Caps&identity.Expose == 0 {
			continue
		}
		g.Go(func() error {
			found := d.lsOf(ctx, roster, e)
			mu.Lock()
			list = append(list, found...)
			mu.Unlock()
			return nil
		})
	}
	g.Wait()
	slices.SortFunc(list, func(a, b LsEntry) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(kindRank(a.UDP), kindRank(b.UDP)))
	})
	return emitResult(emit, "ls", list)
}

// kindRank puts a service's TCP before its UDP.
func kindRank(udp bool) int {
	if udp {
		return 1
	}
	return 0
}

func (d *Daemon) lsOf(ctx context.Context, roster *identity.Sealed, e identity.Entry) []LsEntry {
	var list []LsEntry
	row := func(name string) LsEntry {
		long := name + "." + e.Name
		entry := LsEntry{Service: long, Long: long, Machine: e.Name, Peer: e.Peer.String(), State: "offline"}
		if roster.Services[name] == e.Peer {
			entry.Service = name
		}
		return entry
	}
	offered, err := d.askServices(ctx, e.Peer)
	if err != nil {
		for name, p := range roster.Services {
			if p == e.Peer {
				list = append(list, row(name))
			}
		}
		return list
	}
	for _, s := range offered {
		entry := row(s.Name)
		entry.State, entry.Port, entry.Last, entry.UDP = "online", int(s.Port), int(s.Last), s.UDP
		if path, ok := d.node.Path(e.Peer); ok {
			entry.Path = d.pathOf(path)
		}
		list = append(list, entry)
	}
	return list
}

// peers lists the roster.
func (d *Daemon) peers(emit func(Event)) error {
	if d.book.Current() == nil {
		return errNoNetwork
	}
	return emitResult(emit, "peers", d.peerList())
}

func (d *Daemon) peerList() []PeerEntry {
	roster := d.book.Current()
	if roster == nil {
		return nil
	}
	list := []PeerEntry{}
	for _, e := range roster.Entries {
		row := PeerEntry{Name: e.Name, Peer: e.Peer.String(), Role: roster.Role(e.Peer), Caps: strings.Split(e.Caps.String(), ","),
			Tags: append([]string{}, e.Tags...), Self: e.Peer == d.self}
		if !e.Expires.IsZero() {
			row.Expires = &e.Expires
		}
		d.mu.Lock()
		seen, ok := d.seen[e.Peer]
		d.mu.Unlock()
		if ok {
			row.LastSeen, row.Version, row.Epoch = &seen.at, seen.version, seen.epoch
		}
		if row.Self {
			row.Version, row.Epoch = Version(), roster.Epoch
		}
		if path, ok := d.node.Path(e.Peer); ok {
			row.Path = d.pathOf(path)
		}
		list = append(list, row)
	}
	return list
}
