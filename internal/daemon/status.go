package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"fwd/internal/node"
)

type multiaddr = ma.Multiaddr

// status answers once, or once a second until ctx ends.
func (d *Daemon) statusReport(ctx context.Context, req StatusRequest, emit func(Event)) error {
	for {
		if err := emitResult(emit, "status", d.status()); err != nil || !req.Watch {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// status is one snapshot. Its lists are never null: scripts loop over them.
func (d *Daemon) status() Status {
	s := Status{V: 1, Peer: d.self.String(), Version: Version(), PID: os.Getpid(),
		Relays: []RelayStatus{}, Services: []ServiceStatus{}, Forwards: []ForwardStatus{}, Sessions: []Session{}, Wishes: d.up.status(),
		Traffic: d.traffic.status(recent), Warnings: d.warnings(time.Now())}
	if roster := d.book.Current(); roster != nil {
		e, _ := roster.Entry(d.self)
		s.Name = e.Name
		s.Network = &NetworkStatus{ID: string(roster.Network), Name: roster.Name, Epoch: roster.Epoch, Term: roster.Term, Role: roster.Role(d.self)}
	}
	d.mu.Lock()
	if d.expelled {
		s.Warnings = append(s.Warnings, errExpelled.What+": "+errExpelled.Hint)
	}
	d.mu.Unlock()
	nat := d.node.NAT()
	s.NAT = NATStatus{Reachability: nat.Reachability, UDP: nat.UDP, TCP: nat.TCP, Filtering: nat.Filtering,
		Ports: nat.Ports, DoubleNAT: nat.DoubleNAT, IPv6: nat.IPv6, PortMapping: nat.PortMapping, PublicAddrs: words(nat.Public)}
	for _, r := range d.node.RelayStates() {
		s.Relays = append(s.Relays, RelayStatus{Peer: r.Peer.String(), Name: d.nameOf(r.Peer),
			Connected: r.Connected, Reserved: r.Reserved, RTT: millis(r.RTT)})
	}

	sessionsOf := map[string]int{} // by role and service
	inUse := map[peer.ID]bool{}
	for _, info := range d.sessions.Sessions() {
		inUse[info.Peer] = true
		service := whole(info.Service)
		sessionsOf[info.Role+service]++
		s.Sessions = append(s.Sessions, d.sessionRow(info))
	}
	flows := d.flowRows()
	for _, f := range d.datagrams.Flows() {
		inUse[f.Peer] = true
		service := serviceKey(whole(f.Service), true)
		sessionsOf[f.Role+service]++
	}
	s.Sessions = append(s.Sessions, flows...)
	d.mu.Lock()
	for _, svc := range d.services {
		s.Services = append(s.Services, ServiceStatus{Name: svc.name, Target: svc.target.String(), Allow: d.allowWords(svc),
			Sessions: sessionsOf["exit"+svc.key()], From: svc.from, Rate: d.traffic.rate("", svc.key(), "exit")})
	}
	forwards := make([]*forwarding, 0, len(d.forwards))
	for f := range d.forwards {
		forwards = append(forwards, f)
	}
	for e := range d.socks {
		s.Forwards = append(s.Forwards, ForwardStatus{Service: socksNames, Local: e.local, Sessions: int(e.sessions.Load()), From: e.from})
	}
	d.mu.Unlock()
	for _, f := range forwards {
		inUse[f.peer()] = true
		for _, end := range d.localEndsOf(f) {
			sessions, rate := end.tally.now()
			row := ForwardStatus{Service: f.word, Machine: d.nameOf(f.peer()), Peer: f.peer().String(), Local: end.local,
				Sessions: sessions, From: f.from, Rate: rate}
			if path, ok := d.node.PathBy(f.peer(), d.pathKind(f.peer())); ok {
				row.Path = d.pathOf(path)
			}
			s.Forwards = append(s.Forwards, row)
		}
	}
	s.Paths = d.pathsTo(inUse)
	slices.SortFunc(s.Services, func(a, b ServiceStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Target, b.Target))
	})
	slices.SortFunc(s.Forwards, func(a, b ForwardStatus) int { return cmp.Compare(a.Local, b.Local) })
	if d.relay != nil {
		stats := d.relay.Stats()
		s.Relaying = &RelayingStatus{Addrs: words(d.node.ReachableAddrs()), Reservations: stats.Reservations, Circuits: stats.Circuits, Bytes: stats.Bytes}
	}
	return s
}

// pathsTo is how each of these peers is reached, by name.
func (d *Daemon) pathsTo(peers map[peer.ID]bool) []PathStatus {
	list := []PathStatus{}
	for p := range peers {
		row := PathStatus{Peer: p.String(), Machine: d.nameOf(p), Rate: d.traffic.rate(p, "", "")}
		if path, ok := d.node.PathBy(p, d.pathKind(p)); ok {
			row.Path = d.pathOf(path)
		}
		list = append(list, row)
	}
	slices.SortFunc(list, func(a, b PathStatus) int { return cmp.Compare(a.Machine, b.Machine) })
	return list
}

// pathOf is a path as people and scripts are told it.
func (d *Daemon) pathOf(p node.Path) *Path {
	out := &Path{Kind: p.Kind, Transport: p.Transport, RTT: millis(p.RTT), Since: p.Since, Reason: p.Reason, Spread: p.Spread}
	if p.Remote != nil {
		out.Remote = p.Remote.String()
	}
	if p.Bulk != nil {
		out.Bulk = p.Bulk.String()
	}
	if p.Relay != "" {
		out.Relay = d.nameOf(p.Relay)
	}
	return out
}

// followPaths renews the sessions of a peer whose best path has changed, until
// ctx ends: the one arrow from the node to the sessions.
func (d *Daemon) followPaths(ctx context.Context) error {
	changes, stop := d.node.Watch()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-changes:
			if c.New.Kind == "" {
				d.log.Info("path lost", "peer", d.nameOf(c.Peer))
				continue // the session layer sees the silence and asks for another
			}
			d.log.Info("path", "peer", d.nameOf(c.Peer), "kind", c.New.Kind, "transport", c.New.Transport, "remote", c.New.Remote, "rtt", c.New.RTT)
			d.sessions.Renew(c.Peer)
			d.datagrams.Renew(c.Peer)
		}
	}
}

// millis is a duration in milliseconds with one decimal.
func millis(t time.Duration) float64 {
	return float64(t.Round(100*time.Microsecond).Microseconds()) / 1000
}

func words[T fmt.Stringer](list []T) []string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// hostPort is a multiaddr as people write addresses.
func hostPort(a ma.Multiaddr) string {
	first, _ := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_P2P || c.Protocol().Code == ma.P_CIRCUIT })
	if network, address, err := manet.DialArgs(withoutQUIC(first)); err == nil && !strings.HasPrefix(network, "ip") {
		return address
	}
	return a.String()
}

func withoutQUIC(a ma.Multiaddr) ma.Multiaddr {
	before, _ := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_QUIC_V1 })
	return before
}

// emitResult sends a command's one answer.
func emitResult(emit func(Event), event string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	emit(Event{Event: event, Result: data})
	return nil
}
