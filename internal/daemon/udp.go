package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"fwd/forward"
	"fwd/forward/datagram"
	"fwd/forward/session"
	"fwd/identity"
	"fwd/internal/node"
)

// UDP services stand beside those of TCP: a name may be both, with two targets and one list of who may use it.

// udpProtocol is the carrier's, docs/udp.md.
const udpProtocol = protocol.ID("/fwd/udp/1")

// A serviceKey is a service's place in Daemon.services: its name, and for UDP "/udp" behind it, which no name has.
func serviceKey(name string, udp bool) string {
	if udp {
		return name + udpSuffix
	}
	return name
}

// Behind a service's name or an address: one of the two alone.
const (
	udpSuffix = "/udp"
	tcpSuffix = "/tcp"
)

func (s *service) key() string { return serviceKey(s.name, s.target.UDP()) }

// servicesLocked are the services of that name, TCP first; "dns/udp" means the one, and
// "dns/tcp" the other.
func (d *Daemon) servicesLocked(word string) []*service {
	var list []*service
	keys := []string{word, word + udpSuffix}
	if name, ok := strings.CutSuffix(word, tcpSuffix); ok {
		keys = []string{name}
	}
	for _, key := range keys {
		if svc := d.services[key]; svc != nil {
			list = append(list, svc)
		}
	}
	return list
}

// buildDatagrams makes the carriers' endpoint and lets peers attach.
func (d *Daemon) buildDatagrams() {
	d.datagrams = datagram.New(datagram.Config{
		Open:      d.openCarrier,
		Packets:   packetsOf,
		Authorize: d.authorizeUDP,
		Log:       d.log,
	})
	d.node.Host().SetStreamHandler(udpProtocol, func(s network.Stream) { d.datagrams.Handle(s.Conn().RemotePeer(), s) })
}

// openCarrier opens a carrier's stream by the best path now.
func (d *Daemon) openCarrier(ctx context.Context, p peer.ID, avoid datagram.Stream) (datagram.Stream, error) {
	wish := node.Wish{Kind: d.pathKind(p)}
	if s, ok := avoid.(network.Stream); ok {
		wish.Now, wish.Silent = s.Conn(), true
	}
	s, err := d.node.OpenFor(ctx, p, udpProtocol, wish)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func packetsOf(s datagram.Stream) datagram.Packets {
	if ns, ok := s.(network.Stream); ok {
		if c := node.Datagrams(ns); c != nil {
			return c
		}
	}
	return nil
}

// authorizeUDP: may p use the service, or with "" any?
func (d *Daemon) authorizeUDP(p peer.ID, service string) error {
	if service == "" {
		return d.authorizeLane(p)
	}
	_, err := d.lookupUDP(p, service)
	return err
}

// lookupUDP is the question of a UDP service's exit.
func (d *Daemon) lookupUDP(p peer.ID, name string) (forward.Target, error) {
	return d.lookupNew(p, name, true)
}

// udpExit serves the far ends' flows with the services exposed here.
func (d *Daemon) udpExit() *forward.UDPExit {
	return &forward.UDPExit{Accept: d.datagrams.Accept, Lookup: d.lookupUDP, Room: d.room.targets, Log: d.log}
}

// serveUDP carries the datagrams of a forward until ctx ends.
func (d *Daemon) serveUDP(ctx context.Context, f *forwarding, port int, entry *forward.UDPEntry, emit func(Event)) error {
	defer d.datagrams.Hold(f.peer())() // a carrier is there when the first datagram comes
	told := d.refusalTeller(f, emit)
	entry.Dial = func(back datagram.Sink) (forward.UDPFlow, error) {
		flow := &talliedFlow{Sink: back}
		var err error
		if flow.Flow, err = d.datagrams.Dial(f.peer(), portWord(f.service, port), flow); err != nil {
			return nil, err
		}
		flow.begin(&f.udp)
		return flow, nil
	}
	entry.Refused = func(err error) {
		var refused *datagram.RefusedError
		if errors.As(err, &refused) {
			told(&session.RefusedError{Service: refused.Service, Code: session.Code(refused.Code)}) // the codes are the same
		}
	}
	entry.Log = d.log.With("service", f.word, "peer", d.nameOf(f.peer()))
	return entry.Serve(ctx)
}

// An offer is what is known of a service's kinds: whether it is there for TCP and UDP, and the targets' ports.
type offer struct {
	known    bool
	tcp, udp bool
	port     int // of TCP, else of UDP; of a range the first
	ports    int // of a range; of both kinds' the smaller
}

func (o offer) none() bool { return o.known && !o.tcp && !o.udp }

// offerOf picks a service out of what a peer exposes.
func offerOf(list []identity.ServiceInfo, name string) offer {
	o := offer{known: true}
	for _, s := range list {
		switch {
		case s.Name != name:
			continue
		case s.UDP:
			o.udp = true
			if !o.tcp {
				o.port = int(s.Port)
			}
		default:
			o.tcp, o.port = true, int(s.Port)
		}
		ports := 1 + max(int(s.Last), int(s.Port)) - int(s.Port)
		if o.ports == 0 || ports < o.ports {
			o.ports = ports
		}
	}
	return o
}

// kindsRemembered is what a service was when it was last met.
func (d *Daemon) kindsRemembered(word string) (o offer) {
	d.state.get(func(s stateFile) {
		kinds := s.Kinds[word]
		o.tcp, o.udp = slices.Contains(kinds, "tcp"), slices.Contains(kinds, "udp")
	})
	if !o.tcp && !o.udp {
		o.tcp = true // most are
	}
	return o
}

// rememberKinds keeps it, if it is anything but what is taken for granted.
func (d *Daemon) rememberKinds(word string, o offer) {
	var kinds []string
	if o.tcp {
		kinds = append(kinds, "tcp")
	}
	if o.udp {
		kinds = append(kinds, "udp")
	}
	was := d.kindsRemembered(word)
	if was.tcp == o.tcp && was.udp == o.udp {
		return
	}
	if err := d.state.change(func(s *stateFile) { s.Kinds[word] = kinds }); err != nil {
		d.log.Warn("remember what a service is", "service", word, "err", err)
	}
}

// cut ends sessions and flows that match.
func (d *Daemon) cut(match func(p peer.ID, service, role string, udp bool) bool, why error) {
	d.sessions.Cut(func(p peer.ID, service, role string) bool { return match(p, service, role, false) }, why)
	d.datagrams.Cut(func(p peer.ID, service, role string) bool { return match(p, service, role, true) }, why)
}

// totals are the sessions' and the flows' counts; a UDP service's name has "/udp" behind it.
func (d *Daemon) totals() session.Totals {
	t := d.sessions.Totals()
	for _, u := range d.datagrams.Totals() {
		t.Traffic = append(t.Traffic, session.Traffic{Peer: u.Peer, Service: serviceKey(whole(u.Service), true), Role: u.Role,
			Opened: u.Opened, Sent: u.Sent, Received: u.Received})
	}
	t.Traffic = wholeTraffic(t.Traffic)
	return t
}

// flowRows are the flows as status shows them beside the sessions.
func (d *Daemon) flowRows() []Session {
	var rows []Session
	for _, f := range d.datagrams.Flows() {
		row := Session{ID: f.ID, Service: f.Service, Protocol: "udp", Machine: d.nameOf(f.Peer), Peer: f.Peer.String(), Role: f.Role, State: "open",
			Sent: f.Sent, Received: f.Received, Dropped: f.Dropped, Opened: f.Opened}
		if path, ok := d.node.PathBy(f.Peer, d.pathKind(f.Peer)); ok && f.Attached {
			row.Path = path.Kind
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Session) int { return a.Opened.Compare(b.Opened) })
	return rows
}

// withoutUDP is a local address or a service's key without its suffix.
func withoutUDP(word string) string { return strings.TrimSuffix(word, udpSuffix) }

// withoutKind is a service's name without what says which of its two kinds is meant.
func withoutKind(word string) string { return strings.TrimSuffix(withoutUDP(word), tcpSuffix) }
