package daemon

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/errgroup"

	"fwd/discovery"
	"fwd/forward/session"
	"fwd/identity"
	"fwd/internal/node"
	"fwd/relaynode"
)

const laneProtocol = protocol.ID("/fwd/lane/1")

// assemble builds the rooms and hands each what it needs of the others, as
// functions: no room knows another but through here.
func (d *Daemon) assemble(plan *relayPlan, c *config) error {
	cfg := node.Config{
		Key:           d.key,
		Member:        d.member,
		Relays:        d.relays,
		Open:          map[protocol.ID]bool{joinProtocol: true, rosterProtocol: true},
		Known:         node.Known{Get: d.known.Addrs, Set: d.rememberAddrs},
		Find:          func(ctx context.Context, p peer.ID) <-chan peer.AddrInfo { return d.finder.Find(ctx, p) },
		BeforeReserve: d.exchange,
		Changed:       func() { d.finder.Announce() },
		Proxy:         environmentsProxy(),
		Name:          d.nameOf,
		NoGuessing:    os.Getenv("FWD_NO_GUESSING") != "",
		Mapping:       plan == nil,
		Relay:         plan != nil,
		Log:           d.log,
	}
	if plan != nil {
		cfg.Listen, cfg.Announce = plan.listen, plan.announce
	}
	if err := d.buildNode(cfg, c); err != nil {
		return err
	}
	if err := d.buildDiscovery(plan != nil); err != nil {
		return errors.Join(err, d.node.Close())
	}
	if plan != nil {
		relay, err := relaynode.New(d.node.Host(), relaynode.Config{Member: d.member, Network: d.networkWord, Limits: plan.limits, Usage: d.relayUsage(), Log: d.log})
		if err != nil {
			return errors.Join(fmt.Errorf("start the relay: %w", err), d.dht.Close(), d.node.Close())
		}
		d.relay = relay
	}
	d.maxHold = c.Limits.hold()
	d.sessions = session.New(session.Config{
		Self:      d.self,
		Open:      d.openLane,
		Authorize: d.authorizeLane,
		Hold:      d.maxHold,
		HoldFor:   d.holdFor,
		Silent:    d.pathSilent,
		Budget:    c.Limits.Memory.bytes,
		Log:       d.log,
	})
	h := d.node.Host()
	h.SetStreamHandler(rosterProtocol, d.serveRoster)
	h.SetStreamHandler(joinProtocol, d.serveJoin)
	h.SetStreamHandler(servicesProtocol, d.serveServices)
	h.SetStreamHandler(nudgeProtocol, d.serveNudge)
	h.SetStreamHandler(speedProtocol, d.serveSpeed)
	d.buildDatagrams()
	h.SetStreamHandler(laneProtocol, func(s network.Stream) { d.sessions.Handle(s.Conn().RemotePeer(), s) })
	h.Network().Notify(&network.NotifyBundle{ConnectedF: d.connected})
	return nil
}

// buildNode listens on the port that fwd.toml names, else on that of last time, or
// where another program has it meanwhile on a new one. A relay's is what was asked for.
func (d *Daemon) buildNode(cfg node.Config, c *config) error {
	if cfg.Relay {
		if err := checkRelayPorts(cfg.Listen); err != nil {
			return err
		}
		n, err := node.New(cfg)
		if err != nil {
			return fmt.Errorf("start the relay: %w", err)
		}
		d.node = n
		return nil
	}
	port, err := d.choosePort(c.Port)
	if err != nil {
		return err
	}
	cfg.Listen = anyAddr(port)
	for _, w := range c.Announce {
		at, err := announceListened(w.text, cfg.Listen)
		if err != nil {
			return err
		}
		cfg.Announce = append(cfg.Announce, at...)
	}
	n, err := node.New(cfg)
	if err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	d.node = n
	return nil
}

// choosePort is the wanted port, or if that is 0 the one of last time, or a new one.
func (d *Daemon) choosePort(wanted int) (port int, err error) {
	if wanted != 0 {
		if err := checkPorts(anyAddr(wanted)); err != nil {
			return 0, fail(ExitLocalPort, "local-port", "end the other program, or choose another port in fwd.toml", "cannot use the port that fwd.toml names: %v", err)
		}
		return wanted, nil
	}
	d.state.get(func(s stateFile) { port = s.Port })
	for range portTries {
		if port == 0 {
			port = firstPort + rand.IntN(ports)
		}
		if err = checkPorts(anyAddr(port)); err == nil {
			break
		}
		port = 0
	}
	if err != nil {
		return 0, fail(ExitLocalPort, "local-port", `name a free one in fwd.toml: port = 24817`, "found no free port from %d to %d in %d tries: %v", firstPort, firstPort+ports-1, portTries, err)
	}
	if err := d.state.change(func(s *stateFile) { s.Port = port }); err != nil {
		d.log.Warn("remember the port for the next start", "port", port, "err", err)
	}
	return port, nil
}

const (
	// firstPort and ports: above the ports that services are registered at, and
	// below the range from which systems draw for outgoing connections (32768).
	firstPort = 20000
	ports     = 12000
	portTries = 20
)

func anyAddr(port int) []ma.Multiaddr {
	p := strconv.Itoa(port)
	return append(bothTransports("/ip4/0.0.0.0", p), bothTransports("/ip6/::", p)...)
}

func (d *Daemon) buildDiscovery(server bool) error {
	table, err := discovery.NewDHT(d.node.Host(), server, d.member, d.relays, d.discoveryKeys)
	if err != nil {
		return fmt.Errorf("start the DHT: %w", err)
	}
	finder, err := discovery.New(discovery.Config{
		Host:    d.node.Host(),
		Network: d.networkWord,
		Keys:    d.discoveryKeys,
		Points:  d.points,
		Member:  d.member,
		Addrs:   d.node.AnnounceAddrs,
		Known:   d.known.Addrs,
		LAN:     os.Getenv("FWD_NO_LAN") == "",
		DHT:     table,
		Log:     d.log,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("start discovery: %w", err), table.Close())
	}
	d.dht, d.finder = table, finder
	return nil
}

// goodbye is how long the host outlives the end of the rest: a lane takes a second at most for its END.
const goodbye = 2 * time.Second

// rooms runs everything that was assembled until ctx ends.
func (d *Daemon) rooms(ctx context.Context, g *errgroup.Group) {
	serve := func(name string, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	// The host closes after the sessions, which tell their peers that they end, so that nobody waits for us. But what
	// still waits after goodbye waits for connections that are dead, and for us to close them.
	host, closeHost := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(goodbye, closeHost) })
	serve("node", func(context.Context) error { return d.node.Serve(host) })
	serve("sessions", func(ctx context.Context) error {
		defer closeHost()
		return d.sessions.Serve(ctx)
	})
	serve("discovery", d.finder.Serve)
	serve("exit", d.exit().Serve)
	serve("datagrams", d.datagrams.Serve)
	serve("udp exit", d.udpExit().Serve)
	serve("roster", d.followRoster)
	serve("paths", d.followPaths)
	serve("comparisons", d.followComparisons)
	serve("heartbeats", d.heartbeats)
	serve("welcomes", d.followWelcomes)
	serve("traffic", d.followTraffic)
	if d.relay != nil {
		serve("relay", d.relay.Serve)
		serve("relay usage", d.followRelayUsage)
	}
}

// member: on the roster now?
func (d *Daemon) member(p peer.ID) bool { return d.book.Member(p, time.Now()) }

func (d *Daemon) networkID() identity.NetworkID {
	if s := d.book.Current(); s != nil {
		return s.Network
	}
	return ""
}

// networkWord is networkID to those who do not know of identity.
func (d *Daemon) networkWord() string { return string(d.networkID()) }

// relays are the roster's, at their addresses there and at those where we met
// them last: a relay that moved hands on its new roster only once it is found.
func (d *Daemon) relays() []peer.AddrInfo {
	s := d.book.Current()
	if s == nil {
		return nil
	}
	var list []peer.AddrInfo
	for _, r := range s.Relays {
		if r.Peer != d.self {
			list = append(list, peer.AddrInfo{ID: r.Peer, Addrs: append(append([]ma.Multiaddr{}, r.Addrs...), d.known.Addrs(r.Peer)...)})
		}
	}
	return list
}

// points are the rendezvous points: the relays, and where there are none the
// owner's word of mouth, mDNS and the last known addresses must do.
func (d *Daemon) points() []peer.ID {
	var list []peer.ID
	for _, r := range d.relays() {
		list = append(list, r.ID)
	}
	return list
}

// discoveryKeys: relays and the owner stay findable under the old ones, for
// who was away while the key changed.
func (d *Daemon) discoveryKeys() [][]byte {
	s := d.book.Current()
	if s == nil {
		return nil
	}
	keys := [][]byte{s.DiscoveryKey}
	if e, _ := s.Entry(d.self); s.Owner == d.self || e.Caps&identity.Relay != 0 {
		keys = append(keys, s.OldDiscoveryKeys...)
	}
	return keys
}

func (d *Daemon) rememberAddrs(p peer.ID, addrs []ma.Multiaddr) {
	if err := d.known.SetAddrs(p, addrs); err != nil {
		d.log.Warn("remember where a peer was reached", "peer", d.nameOf(p), "err", err)
	}
}

// openLane opens a lane's stream by the best path now.
func (d *Daemon) openLane(ctx context.Context, p peer.ID, want session.Want) (session.Stream, error) {
	wish := node.Wish{Kind: d.pathKind(p), Silent: want.Silent, Bulk: want.Bulk}
	if s, ok := want.Now.(network.Stream); ok {
		wish.Now = s.Conn()
	}
	s, err := d.node.OpenFor(ctx, p, laneProtocol, wish)
	if errors.Is(err, node.ErrStay) {
		return nil, session.ErrStay
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// authorizeLane: may p attach at all? What it may open is asked at each open.
func (d *Daemon) authorizeLane(p peer.ID) error {
	return identity.AuthorizeLane(d.book.For(p), d.now(), p, d.self)
}
