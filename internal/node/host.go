package node

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net"
	"net/url"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/blank"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/quic-go/quic-go"
)

// userAgent is what identify tells everyone: neither version nor system.
const userAgent = "fwd"

// parts is a libp2p host put together by hand. libp2p.New would do most of it, but it links every
// transport there is (WebRTC, WebTransport) and listens before a guard can be set; by hand
// the order is ours, and the upgrader and the UDP sockets stay within reach.
type parts struct {
	host     *basichost.BasicHost
	swarm    *swarm.Swarm
	upgrader transport.Upgrader
	sockets  *sockets
	quic     *quicreuse.ConnManager
	key      crypto.PrivKey
	limits   network.ResourceManager
	dialer   *swarm.Swarm  // AutoNAT's, which dials back; the host closes it
	reach    event.Emitter // says "private" or "public" to whoever asks the bus
}

type transports struct {
	upgrader transport.Upgrader
	sockets  *sockets
	quic     *quicreuse.ConnManager
}

// proxyFor gives the proxy for reaching a peer at an address; nil: none.
type proxyFor func(p peer.ID, address string) *url.URL

// quicTransport closes the UDP sockets when the swarm, having closed all else, closes its transports.
type quicTransport struct {
	transport.Transport
	manager *quicreuse.ConnManager
}

func (t *quicTransport) Close() error { return t.manager.Close() }

// newTransports adds QUIC, TCP and WebSocket (TLS first, then Noise; yamux) to s.
func newTransports(s *swarm.Swarm, key crypto.PrivKey, limits network.ResourceManager, relay bool, proxy proxyFor) (*transports, error) {
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: newMuxer(relay)}}
	tls, err := newTimelessTLS(key, yamux.ID)
	if err != nil {
		return nil, err
	}
	noise, err := noise.New(noise.ID, key, muxers)
	if err != nil {
		return nil, err
	}
	up, err := upgrader.New([]sec.SecureTransport{tls, noise}, muxers, nil, limits, nil)
	if err != nil {
		return nil, err
	}
	socks := &sockets{}
	cm, err := newQUIC(key, limits, socks.listen)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*transports, error) { return nil, errors.Join(err, cm.Close()) }
	quic, err := libp2pquic.NewTransport(key, cm, nil, nil, limits)
	if err != nil {
		return fail(err)
	}
	tcp, err := tcp.NewTCPTransport(tuned{up}, limits, nil)
	if err != nil {
		return fail(err)
	}
	out := &outward{upgrader: up, limits: limits, proxy: proxy}
	ws, err := newWebSocket(out, relay)
	if err != nil {
		return fail(err)
	}
	if err := s.AddTransport(&quicTransport{Transport: quic, manager: cm}); err != nil {
		return fail(err)
	}
	return &transports{upgrader: up, sockets: socks, quic: cm}, errors.Join(s.AddTransport(&proxiedTCP{tcp, out}), s.AddTransport(ws))
}

// newSwarm makes a swarm on which AutoNAT asks none but those relays.
func newSwarm(key crypto.PrivKey, limits network.ResourceManager, bus event.Bus, relays func() []peer.AddrInfo) (*swarm.Swarm, error) {
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(store.AddPrivKey(self, key), store.AddPubKey(self, key.GetPublic())); err != nil {
		return nil, err
	}
	return swarm.NewSwarm(self, &testimony{store, store, relays}, bus,
		swarm.WithResourceManager(limits),
		swarm.WithDialRanker(rankDials),
		// Punching fails by nature; the detectors would take that for a network without UDP or IPv6
		// and let only one dial in a hundred through.
		swarm.WithUDPBlackHoleSuccessCounter(nil),
		swarm.WithIPv6BlackHoleSuccessCounter(nil),
	)
}

// newParts assembles the host, silent: no address is listened on yet.
func newParts(cfg *Config, proxy proxyFor, opts basichost.HostOpts) (*parts, error) {
	limits, err := newLimits()
	if err != nil {
		return nil, err
	}
	bus := eventbus.NewBus()
	s, err := newSwarm(cfg.Key, &discreetLimits{limits, cfg.Member}, bus, cfg.Relays)
	if err != nil {
		return nil, errors.Join(err, limits.Close())
	}
	t, err := newTransports(s, cfg.Key, limits, cfg.Relay, proxy)
	if err != nil {
		return nil, errors.Join(err, s.Close(), limits.Close())
	}
	p := &parts{swarm: s, upgrader: t.upgrader, sockets: t.sockets, quic: t.quic, key: cfg.Key, limits: limits}
	fail := func(err error) (*parts, error) { return nil, errors.Join(err, s.Close(), limits.Close()) }

	if opts.AutoNATv2, p.dialer, err = newAutoNAT(limits, cfg.Relay); err != nil {
		return fail(err)
	}
	if opts.ConnManager, err = newConnManager(cfg.Relay); err != nil {
		return fail(err)
	}
	opts.EventBus = bus
	opts.EnablePing = true
	opts.UserAgent = userAgent
	// No ObservedAddrsManager: observed addresses are never announced or dialled unpunched (a full
	// packet to one makes some routers unpunchable, docs/paths.md); punching asks the relays itself.
	if p.host, err = basichost.NewHost(s, &opts); err != nil {
		return fail(err)
	}
	if p.reach, err = bus.Emitter(new(event.EvtLocalReachabilityChanged), eventbus.Stateful); err != nil {
		return fail(err)
	}
	reach := network.ReachabilityPrivate
	if cfg.Relay {
		reach = network.ReachabilityPublic
	}
	// What libp2p.ForceReachability does, without AutoNAT v1 behind it.
	if err := p.reach.Emit(event.EvtLocalReachabilityChanged{Reachability: reach}); err != nil {
		return fail(err)
	}
	return p, nil
}

// start begins the host's background work; the guard must be set before it, listening comes after.
func (p *parts) start(relay bool) error {
	p.host.Start()
	if !relay {
		// Everyone asks for dial-backs, only relays give them.
		p.host.RemoveStreamHandler(autonatv2.DialProtocol)
	}
	return circuit.AddTransport(p.host, p.circuits())
}

// circuits is the upgrader for connections by a relay.
func (p *parts) circuits() transport.Upgrader { return tuned{p.upgrader} }

// close ends everything. The host leaves only the peer store of AutoNAT's dialer open.
func (p *parts) close() error {
	return errors.Join(p.host.Close(), p.dialer.Peerstore().Close(), p.reach.Close())
}

// newAutoNAT makes the client and, on a relay, the server that dials back from a key of its own.
func newAutoNAT(limits network.ResourceManager, server bool) (*autonatv2.AutoNAT, *swarm.Swarm, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	bus := eventbus.NewBus()
	if !server {
		limits = &network.NullResourceManager{}
	}
	s, err := newSwarm(key, limits, bus, func() []peer.AddrInfo { return nil }) // it answers, and asks nobody
	if err != nil {
		return nil, nil, err
	}
	if server {
		if _, err := newTransports(s, key, limits, false, nil); err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
	}
	nat, err := autonatv2.New(blankhost.NewBlankHost(s, blankhost.WithEventBus(bus)))
	return nat, s, err
}

// listenUDP opens a UDP socket for QUIC.
type listenUDP = func(network string, addr *net.UDPAddr) (net.PacketConn, error)

// newQUIC manages the UDP sockets: one a listen address, used for dialling and punching too.
func newQUIC(key crypto.PrivKey, limits network.ResourceManager, listen listenUDP) (*quicreuse.ConnManager, error) {
	// Both keys follow from the peer's, so that a restarted peer can tell old connections at once
	// that they are dead.
	var reset quic.StatelessResetKey
	var token quic.TokenGeneratorKey
	raw, err := key.Raw()
	if err != nil {
		return nil, err
	}
	for info, into := range map[string][]byte{"fwd quic stateless reset": reset[:], "fwd quic token": token[:]} {
		k, err := hkdf.Key(sha256.New, raw, nil, info, len(into))
		if err != nil {
			return nil, err
		}
		copy(into, k)
	}
	return quicreuse.NewConnManager(reset, token,
		quicreuse.OverrideListenUDP(listen),
		quicreuse.ConnContext(func(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
			// Counts the connection before its handshake. An address that has no multiaddr form is
			// still the limiter's to judge.
			addr, err := quicreuse.ToQuicMultiaddr(client.RemoteAddr, quic.Version1)
			if err != nil {
				addr = nil
			}
			scope, err := limits.OpenConnection(network.DirInbound, false, addr)
			if err != nil {
				return ctx, err
			}
			ctx = network.WithConnManagementScope(ctx, scope)
			context.AfterFunc(ctx, scope.Done)
			return ctx, nil
		}),
		quicreuse.VerifySourceAddress(func(a net.Addr) bool { return limits.VerifySourceAddress(a) }),
	)
}
