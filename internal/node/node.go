// Package node assembles the libp2p host and says by which path a peer is reached, and when that
// changes.
//
//	n, err := node.New(node.Config{Key: key, Member: book.IsMember, Relays: book.Relays, …})
//	n.Host().SetStreamHandler(laneProtocol, lanes)
//	go n.Serve(ctx)
//	release := n.Hold(p, node.Auto)                         // keep p connected, directly if possible
//	s, err := n.Open(ctx, p, laneProtocol, nil, node.Auto)  // a stream on the best path now
//
// What happens to one peer: Connect races the addresses that were good last time, circuits over every
// relay of the roster, and whatever discovery finds; the first connection whose handshake proves the
// peer carries streams at once, usually a relayed one. Beside it internal/punch tries for a direct
// connection. Every connection's round trip is measured on that very connection, the best one is the
// peer's path, and Watch tells of each change. A connection that falls silent is closed, so that
// nothing uses it again.
//
// Every stream that comes in passes the guard: peers outside the roster get nothing but identify,
// ping, AutoNAT's dial-back (which counts only where we asked for it), and what Config.Open names. Connections that we dial ourselves enter by the door (door.go).
//
// Node knows no names, services or TCP targets, decides nothing about who belongs, and stores nothing.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/basic"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/punch"
)

// Config is what a node is made of. Key, Member and Relays are needed; the functions are called from
// many goroutines and must not block.
type Config struct {
	Key      crypto.PrivKey
	Listen   []ma.Multiaddr // QUIC and TCP, a relay's also WebSocket; none: any port of both, IPv4 and IPv6
	Announce []ma.Multiaddr // public addresses that the machine cannot see itself (1:1 NAT, forwarded ports)
	Relay    bool           // lends its reachability: announces public addresses, dials back, reserves nowhere

	Member func(peer.ID) bool                                  // on the roster and not expired
	Relays func() []peer.AddrInfo                              // the roster's relays, self excluded
	Open   map[protocol.ID]bool                                // protocols that strangers may speak: join, roster
	Known  Known                                               // last good addresses
	Find   func(context.Context, peer.ID) <-chan peer.AddrInfo // discovery; nil: none. Ends with ctx

	// BeforeReserve is asked to exchange rosters with a relay before a reservation; nil: nothing to do.
	BeforeReserve func(ctx context.Context, relay peer.ID) error
	// Changed is told that our own addresses or reservations changed: announce again. Not before Serve. May be nil.
	Changed func()

	// Proxy gives the HTTP proxy by which an address (host:port) may be reached too; nil or nil: none.
	// Only relays, and an invite's contact, are dialled through it.
	Proxy func(address string) *url.URL

	// Name is what a person calls a peer, for reasons; nil: "the peer".
	Name func(peer.ID) string
	// NoGuessing keeps punching to addresses that relays saw: no ports are foretold or guessed.
	NoGuessing bool

	Mapping bool // ask the router for port mappings (PCP, NAT-PMP, UPnP)
	Log     *slog.Logger
}

// Known keeps the addresses at which a peer was last reached directly; either function may be nil.
type Known struct {
	Get func(peer.ID) []ma.Multiaddr
	Set func(peer.ID, []ma.Multiaddr)
}

// PathKind limits by which kind of path a stream may be opened.
type PathKind int

const (
	Auto   PathKind = iota // the best path there is
	Direct                 // only a direct one
	Relay                  // only through a relay
)

// ParsePathKind reads what a person writes: "auto" or nothing, "direct", "relay".
func ParsePathKind(s string) (PathKind, error) {
	switch s {
	case "", "auto":
		return Auto, nil
	case "direct":
		return Direct, nil
	case "relay":
		return Relay, nil
	}
	return Auto, fmt.Errorf("path %q: auto, direct or relay", s)
}

func (k PathKind) String() string { return [...]string{"auto", "direct", "relay"}[k] }

// Path is how a peer is reached now.
type Path struct {
	Kind      string        // "direct" or "relay"
	Transport string        // "quic-v1", "tcp", "wss"; of the relayed hop, if relayed
	Remote    ma.Multiaddr  // the address at the other end of the wire
	Relay     peer.ID       // which relay, if relayed
	Bulk      ma.Multiaddr  // where what moves much goes, if elsewhere; else nil
	Spread    int           // over how many QUIC connections what moves much can go; 0: it is not spread
	RTT       time.Duration // smoothed; 0: not measured yet
	Since     time.Time
	Reason    string // if relayed: why there is no direct path, as far as known
}

// PathChange says that a peer's best path changed; the zero Path stands for none.
type PathChange struct {
	Peer     peer.ID
	Old, New Path
}

// RelayState is one of the roster's relays as this node uses it.
type RelayState struct {
	Peer      peer.ID
	Connected bool
	Reserved  bool
	RTT       time.Duration // 0: not measured yet
}

// ErrUnreachable is what Connect and Open fail with when nothing led to the peer in time.
var ErrUnreachable = errors.New("not reachable")

// Node is one libp2p host and its paths to others.
type Node struct {
	cfg     Config
	self    peer.ID
	parts   *parts
	guard   *guard
	door    *door
	addrs   *addresses
	paths   *paths
	nat     *natView
	packets *packets
	punch   *punch.Puncher
	beside  *punch.Puncher // for a TCP connection beside the path
	log     *slog.Logger

	ctx    context.Context // ends when Serve does
	cancel context.CancelFunc
	tasks  tasks
	wake   *signals // network or roster changed

	network networkView

	relays relayLoops
	dials  relayDials

	sharing sync.Mutex // which link a stream goes by is chosen for one at a time

	mu      sync.Mutex
	served  bool
	holds   map[peer.ID]*hold
	calls   map[peer.ID]*call
	reasons map[peer.ID]string
}

// New assembles the host and lets it listen. The guard stands before the first address is listened
// on. Nothing is dialled until Serve; whoever does not call Serve calls Close.
func New(cfg Config) (*Node, error) {
	n := &Node{
		cfg:     cfg,
		log:     cfg.Log,
		wake:    newSignals(),
		holds:   make(map[peer.ID]*hold),
		calls:   make(map[peer.ID]*call),
		reasons: make(map[peer.ID]string),
		packets: newPackets(),
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	if n.cfg.Member == nil || n.cfg.Relays == nil || n.cfg.Key == nil {
		return nil, errors.New("node: Key, Member and Relays are needed")
	}
	if len(n.cfg.Listen) == 0 {
		n.cfg.Listen = listenAnywhere()
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.network.begin(n.ctx)
	n.dials.failed = make(map[peer.ID]int)
	n.addrs = &addresses{announce: cfg.Announce}
	var err error
	if cfg.Mapping {
		if n.addrs.mapping, err = newMapperConfig(cfg.Key, n.portsMapped, n.log); err != nil {
			return nil, err
		}
	}
	if n.parts, err = newParts(&cfg, n.proxyFor, basichost.HostOpts{
		AddrsFactory: n.addrs.announced,
		NATManager:   n.addrs.natManager,
	}); err != nil {
		n.cancel()
		return nil, fmt.Errorf("assemble the libp2p host: %w", err)
	}
	n.self = n.parts.host.ID()
	n.addrs.host = n.parts.host
	n.guard = newGuard(cfg.Member, cfg.Open)
	n.paths = newPaths(n)
	n.door = newDoor(n.parts, n.paths)
	n.nat = newNATView(n)
	n.punch = n.newPuncher()
	n.beside = n.newBeside()

	if err := n.listen(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// listen opens the guard's gate, the door, and then the listen addresses, in that order.
func (n *Node) listen() error {
	s := n.parts.swarm
	s.SetStreamHandler(n.guard.serve(n.parts.host.Mux()))
	s.Notify(&network.NotifyBundle{
		// One notifiee, for the order counts: who waits at the door finds the connection among the paths.
		ConnectedF: func(_ network.Network, c network.Conn) {
			n.guard.connected(c)
			n.paths.connected(c)
			n.door.connected(c)
		},
		DisconnectedF: func(_ network.Network, c network.Conn) {
			n.guard.disconnected(c)
			n.paths.disconnected(c)
		},
	})
	n.parts.host.SetStreamHandler(punch.Protocol, n.handlePunch)
	n.parts.host.SetStreamHandler(besideProtocol, n.handleBeside)
	if err := n.parts.start(n.cfg.Relay); err != nil {
		return fmt.Errorf("start the libp2p host: %w", err)
	}
	if err := n.door.open(); err != nil {
		return fmt.Errorf("start the libp2p host: %w", err)
	}
	if err := s.Listen(n.cfg.Listen...); err != nil {
		return fmt.Errorf("listen on %v: %w", n.cfg.Listen, err)
	}
	n.readPackets()
	return nil
}

// Serve reserves at relays, keeps held peers connected, punches and probes, until ctx ends; then it
// closes the host and returns when everything has ended.
func (n *Node) Serve(ctx context.Context) error {
	n.mu.Lock()
	n.served = true
	for p, h := range n.holds {
		n.startHoldLocked(p, h)
	}
	n.mu.Unlock()
	n.tasks.start(func() { n.watchNetwork(n.ctx) })
	n.tasks.start(func() { n.sweepMembers(n.ctx) })
	if !n.cfg.Relay {
		n.tasks.start(func() { n.keepRelays(n.ctx) })
		n.tasks.start(func() { n.nat.keep(n.ctx) })
	}
	n.tasks.start(func() { n.keepTidy(n.ctx) })
	select {
	case <-ctx.Done():
	case <-n.parts.swarm.Done():
	}
	return n.Close()
}

// Close ends the node and waits for all that it began.
func (n *Node) Close() error {
	n.cancel()
	n.guard.close()
	n.tasks.close() // nothing new begins
	err := n.parts.close()
	n.tasks.wait()
	return err
}

// Host is the libp2p host: register handlers on it; open streams to peers by Open.
func (n *Node) Host() host.Host { return n.parts.host }

// Connected lists the peers that a connection is open to.
func (n *Node) Connected() []peer.ID { return n.parts.swarm.Peers() }

// AllowStranger lets a peer outside the roster stay for d instead of 5 s, as join needs it. The
// returned function takes the permission back.
func (n *Node) AllowStranger(p peer.ID, d time.Duration) (release func()) { return n.guard.allow(p, d) }

// Refresh says that the roster changed: connections of peers that left it end within 1 s, and the
// relays are read anew.
func (n *Node) Refresh() {
	n.tasks.start(func() { n.guard.sweep(n.parts.swarm.Conns()) })
	n.tasks.start(n.judgeServers)
	n.wake.send(rosterChanged)
}

func (n *Node) sweepMembers(ctx context.Context) {
	for tick := time.NewTicker(sweepEvery); ; {
		select {
		case <-tick.C:
			n.guard.sweep(n.parts.swarm.Conns())
			n.paths.forgetLeft()
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// ListenAddrs is where this node listens, with the ports it really got.
func (n *Node) ListenAddrs() []ma.Multiaddr { return n.addrs.listening() }

// ReachableAddrs is where others can dial this node without punching: announced, port-mapped and
// confirmed public addresses.
func (n *Node) ReachableAddrs() []ma.Multiaddr { return n.addrs.confirmed() }

// DialledAddrs is where relays have dialled this node to see whether it can be (AutoNAT v2).
func (n *Node) DialledAddrs() []ma.Multiaddr {
	dialled, _, _ := n.addrs.host.ConfirmedAddrs()
	return dialled
}

// AnnounceAddrs is what discovery tells others about this node: the addresses that can be dialled and
// the circuits of the relays that hold a reservation. Observed addresses are not among them.
func (n *Node) AnnounceAddrs() []ma.Multiaddr { return n.parts.host.Addrs() }
