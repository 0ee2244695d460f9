package daemon

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/errgroup"

	"fwd/identity"
)

// What a peer exposes is asked of the peer itself, which names only what the
// asker may use: nobody else knows, so nobody else can tell.

const servicesProtocol = protocol.ID("/fwd/services/1")

// servicesTimeout bounds one question over a path that is up.
const servicesTimeout = 10 * time.Second

// maxServices bounds an answer: 1 000 services at 100 bytes.
const maxServices = 256 << 10

type serviceInfo struct {
	Name string `json:"name"`
	Port int    `json:"port,omitempty"` // of the target, to tell how it will be used
}

type servicesReply struct {
	Services []serviceInfo `json:"services"`
}

func (d *Daemon) serveServices(s network.Stream) {
	defer s.Close()
	s.SetDeadline(time.Now().Add(servicesTimeout))
	p := s.Conn().RemotePeer()
	var reply servicesReply
	d.mu.Lock()
	services := make([]*service, 0, len(d.services))
	for _, svc := range d.services {
		services = append(services, svc)
	}
	d.mu.Unlock()
	for _, svc := range services {
		if target, err := d.lookup(p, svc.name); err == nil {
			reply.Services = append(reply.Services, serviceInfo{Name: svc.name, Port: target.Port()})
		}
	}
	slices.SortFunc(reply.Services, func(a, b serviceInfo) int { return cmp.Compare(a.Name, b.Name) })
	if identity.WriteMsg(s, reply) != nil {
		s.Reset()
	}
}

// askServices: what may we use at p? It dials if need be.
func (d *Daemon) askServices(ctx context.Context, p peer.ID) ([]serviceInfo, error) {
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
	var reply servicesReply
	if err := identity.ReadMsg(s, maxServices, &reply); err != nil {
		s.Reset()
		return nil, fmt.Errorf("ask %s for its services: %w", d.nameOf(p), err)
	}
	return reply.Services, nil
}

// checkService fails with a refusal if the peer answers and does not offer f's
// service to us.
func (d *Daemon) checkService(ctx context.Context, f *forwarding) error {
	offered, err := d.askServices(ctx, f.peer)
	if err != nil {
		return err
	}
	for _, s := range offered {
		if s.Name == f.service {
			return nil
		}
	}
	machine := d.nameOf(f.peer)
	return fail(ExitRefused, "refused", fmt.Sprintf("on %s: fwd expose … --name %s, or fwd allow %s %s", machine, f.service, f.service, d.nameOf(d.self)),
		"%s exposes no %q that this machine may use", machine, f.service)
}

// targetPort is where f would listen by itself: the target's own port.
func (d *Daemon) targetPort(ctx context.Context, f *forwarding) string {
	ctx, cancel := context.WithTimeout(ctx, portWait)
	defer cancel()
	offered, err := d.askServices(ctx, f.peer)
	if err != nil {
		return ""
	}
	for _, s := range offered {
		if s.Name == f.service && s.Port >= 1024 {
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port))
		}
	}
	return ""
}

// portWait: a port that is nicer to remember is worth this much at the first
// connect; an offline peer must not hold the listener up.
const portWait = 2 * time.Second

// lsWait is how long ls waits for a peer that is on the roster and silent.
const lsWait = 3 * time.Second

// ls lists what this machine may use: it asks every peer that may expose. One
// that is away is known by the short names the roster has of it.
func (d *Daemon) ls(ctx context.Context, emit func(Event)) error {
	roster := d.book.Current()
	if roster == nil {
		return errNoNetwork
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
	slices.SortFunc(list, func(a, b LsEntry) int { return cmp.Compare(a.Service, b.Service) })
	return emitResult(emit, "ls", list)
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
		entry.State, entry.Port = "online", s.Port
		if path, ok := d.node.Path(e.Peer); ok {
			entry.Path = d.pathOf(path)
		}
		list = append(list, entry)
	}
	return list
}

// peers lists the roster.
func (d *Daemon) peers(emit func(Event)) error {
	roster := d.book.Current()
	if roster == nil {
		return errNoNetwork
	}
	list := []PeerEntry{}
	for _, e := range roster.Entries {
		row := PeerEntry{Name: e.Name, Peer: e.Peer.String(), Role: roster.Role(e.Peer), Caps: e.Caps.Words(),
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
	return emitResult(emit, "peers", list)
}

// ping measures the way to a peer once a second.
func (d *Daemon) ping(ctx context.Context, req PingRequest, emit func(Event)) error {
	roster := d.book.Current()
	if roster == nil {
		return errNoNetwork
	}
	p, err := roster.ResolvePeer(req.Name)
	if err != nil {
		if d.freshen(ctx) {
			p, err = d.book.Current().ResolvePeer(req.Name)
		}
		if err != nil {
			return fail(ExitUnknownName, "unknown-name", "machines are listed by: fwd peers", "no machine or service %q in the network %q", req.Name, roster.Name)
		}
	}
	if p == d.self {
		return usage("name another machine: fwd peers", "%s is this very machine", req.Name)
	}
	release := d.node.Hold(p, 0)
	defer release()
	wait := req.Timeout
	if wait == 0 {
		wait = 30 * time.Second
	}
	first, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := d.node.Connect(first, p); err != nil {
		return unreachable(d.nameOf(p), err)
	}
	for seq := 1; ; seq++ {
		path, err := d.node.Ping(ctx, p)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			emit(Event{Event: "progress", Message: fmt.Sprintf("no answer from %s: %v", d.nameOf(p), err)})
		default:
			emit(Event{Event: "pong", Peer: p.String(), Machine: d.nameOf(p), Path: d.pathOf(path), Seq: seq})
			if req.UntilDirect && path.Kind == "direct" {
				return nil
			}
		}
		if req.Count > 0 && seq == req.Count {
			return err
		}
		if req.UntilDirect && seq == untilDirectPings {
			return fail(ExitUnreachable, "not-direct", "fwd status says why", "%s is still reached by relay", d.nameOf(p))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// untilDirectPings: the ladder's last step ends after about 25 s.
const untilDirectPings = 30
