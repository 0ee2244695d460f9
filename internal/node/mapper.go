package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/net/nat"
	"github.com/libp2p/go-netroute"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"fwd/internal/portmap"
)

// Where no router opens ports one is looked for again: soon, for a router that is starting refuses until it has an
// address, then ever more rarely, in case that somebody turns it on.
const (
	lookSoon   = 15 * time.Second // longer than libp2p's search
	lookSeldom = 10 * time.Minute
)

// mapperConfig is what a mapper needs beside the network.
type mapperConfig struct {
	find    func(context.Context) (*portmap.Router, error) // one that speaks PCP or NAT-PMP
	search  func(network.Network) basichost.NATManager     // libp2p's, for one that speaks UPnP
	changed func()                                         // told when ports were opened or lost
	log     *slog.Logger
}

func newMapperConfig(key crypto.PrivKey, changed func(), log *slog.Logger) (*mapperConfig, error) {
	raw, err := key.Raw()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte("fwd port mapping\n"), raw...))
	nonce := portmap.Nonce(sum[:])
	find := func(ctx context.Context) (*portmap.Router, error) {
		at, err := Gateway(farAway)
		if err != nil {
			return nil, err
		}
		router, err := portmap.Find(ctx, at, nonce)
		if err != nil {
			return nil, fmt.Errorf("ask the router %s: %w", at, err)
		}
		return router, nil
	}
	return &mapperConfig{find: find, search: basichost.NewNATManager, changed: changed, log: log}, nil
}

// natManager is what the host builds its port mapping with.
func (a *addresses) natManager(n network.Network) basichost.NATManager {
	if a.mapping == nil {
		return nil
	}
	m := newMapper(n, *a.mapping)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mapper = m
	return m
}

// mapper has the router here open our ports: by PCP or NAT-PMP, which is a matter of one round trip, else by UPnP, which
// is libp2p's. It can begin anew in another network; libp2p's looks for a router once at its start and never again.
type mapper struct {
	mapperConfig
	network network.Network
	again   chan struct{} // capacity 1: listen addresses or the router's address may have changed

	turning sync.Mutex // held while it begins or ends
	closed  bool
	stop    context.CancelFunc
	ended   chan struct{}

	mu     sync.Mutex
	keeper *portmap.Keeper      // nil: the router speaks neither PCP nor NAT-PMP, or has not been asked yet
	upnp   basichost.NATManager // nil: not needed
}

func newMapper(n network.Network, c mapperConfig) *mapper {
	m := &mapper{mapperConfig: c, network: n, again: make(chan struct{}, 1)}
	listening := func(network.Network, ma.Multiaddr) { m.look() }
	n.Notify(&network.NotifyBundle{ListenF: listening, ListenCloseF: listening})
	m.begin()
	return m
}

// look has it look at once whether the ports are still open, and where.
func (m *mapper) look() {
	select {
	case m.again <- struct{}{}:
	default:
	}
}

// begin wants turning held, or nobody else there yet.
func (m *mapper) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	m.stop, m.ended = cancel, ended
	go func() { // ends with Close or restart
		defer close(ended)
		wait := lookSoon
		for ctx.Err() == nil {
			if m.byPackets(ctx) {
				wait = lookSoon
			}
			if m.byUPnP(ctx, wait) {
				wait = lookSoon
				continue
			}
			wait = min(2*wait, lookSeldom)
		}
	}()
}

// restart may take as long as the router needs to answer.
func (m *mapper) restart() {
	m.turning.Lock()
	defer m.turning.Unlock()
	if m.closed {
		return
	}
	m.stop()
	<-m.ended
	m.begin()
}

// Close gives the ports back.
func (m *mapper) Close() error {
	m.turning.Lock()
	defer m.turning.Unlock()
	m.closed = true
	m.stop()
	<-m.ended
	return nil
}

func (m *mapper) HasDiscoveredNAT() bool {
	keeper, upnp := m.current()
	return keeper != nil || upnp != nil && upnp.HasDiscoveredNAT()
}

// GetMapping is the external address of one that we listen on; nil: none.
func (m *mapper) GetMapping(a ma.Multiaddr) ma.Multiaddr {
	keeper, upnp := m.current()
	switch {
	case upnp != nil:
		return upnp.GetMapping(a)
	case keeper == nil:
		return nil
	}
	p, ok := portOn(a)
	if !ok {
		return nil
	}
	at, ok := keeper.External(p)
	if !ok {
		return nil
	}
	var addr net.Addr = net.TCPAddrFromAddrPort(at)
	if p.Protocol == portmap.UDP {
		addr = net.UDPAddrFromAddrPort(at)
	}
	out, err := manet.FromNetAddr(addr)
	if err != nil {
		return nil
	}
	return append(out, a[2:]...)
}

func (m *mapper) current() (*portmap.Keeper, basichost.NATManager) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keeper, m.upnp
}

func (m *mapper) use(k *portmap.Keeper, upnp basichost.NATManager) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keeper, m.upnp = k, upnp
}

// byPackets maps by PCP or NAT-PMP until ctx ends or the router opens no port by them; did says whether it ever opened one.
func (m *mapper) byPackets(ctx context.Context) (did bool) {
	router, err := m.find(ctx)
	if err != nil {
		m.log.Debug("no port mapping by packets", "err", err)
		return false
	}
	keeper := portmap.NewKeeper(router, m.ports)
	m.use(keeper, nil)
	defer m.use(nil, nil)
	err = keeper.Run(ctx, m.again, func() {
		did = true
		m.log.Debug("the router has opened or closed ports", "router", router.Addr(), "by", router.Protocol(), "now", m.mapped())
		m.changed()
	})
	if ctx.Err() == nil {
		m.log.Debug("the router opens no port", "router", router.Addr(), "by", router.Protocol(), "err", err)
	}
	return did
}

// byUPnP has libp2p look for a router, which it does once. Where it finds none this ends after wait, or as soon as its
// search is over if we were asked to look meanwhile.
func (m *mapper) byUPnP(ctx context.Context, wait time.Duration) (asked bool) {
	if ctx.Err() != nil {
		return false
	}
	select {
	case <-m.again: // byPackets has just looked
	default:
	}
	upnp := m.search(m.network)
	defer upnp.Close()
	m.use(nil, upnp)
	defer m.use(nil, nil)
	began := time.Now()
	tick := time.NewTicker(time.Second) // it tells nobody of what it gets
	defer tick.Stop()
	var before []ma.Multiaddr
	for {
		select {
		case <-tick.C:
		case <-m.again:
			asked = true
			continue
		case <-ctx.Done():
			return asked
		}
		if now := m.mapped(); !slices.EqualFunc(before, now, ma.Multiaddr.Equal) {
			m.log.Debug("the router has opened or closed ports", "by", "UPnP", "now", now)
			before = now
			m.changed()
		}
		passed := time.Since(began)
		if !upnp.HasDiscoveredNAT() && (passed > wait || asked && passed > nat.DiscoveryTimeout) {
			return asked
		}
	}
}

// mapped are all external addresses.
func (m *mapper) mapped() (out []ma.Multiaddr) {
	for _, l := range m.network.ListenAddresses() {
		if a := m.GetMapping(l); a != nil {
			out = append(out, a)
		}
	}
	return out
}

// ports are those that we listen on by IPv4, where others can come.
func (m *mapper) ports() (out []portmap.Port) {
	for _, l := range m.network.ListenAddresses() {
		if p, ok := portOn(l); ok && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// portOn is the port of a listen address that a router could map.
func portOn(a ma.Multiaddr) (p portmap.Port, ok bool) {
	if len(a) < 2 || a[0].Protocol().Code != ma.P_IP4 || manet.IsIPLoopback(a) {
		return p, false
	}
	switch a[1].Protocol().Code {
	case ma.P_UDP:
		p.Protocol = portmap.UDP
	case ma.P_TCP:
		p.Protocol = portmap.TCP
	default:
		return p, false
	}
	at, err := netip.ParseAddrPort("0.0.0.0:" + a[1].Value())
	p.Number = at.Port()
	return p, err == nil && p.Number != 0
}

// farAway is an address that is routed like any on the internet; nothing is sent there (RFC 5737).
var farAway = net.IPv4(192, 0, 2, 1)

// Gateway is the next router on the way to an IPv4 address. Nothing is sent.
func Gateway(to net.IP) (netip.Addr, error) {
	table, err := netroute.New()
	if err != nil {
		return netip.Addr{}, err
	}
	_, gateway, _, err := table.Route(to)
	if err != nil {
		return netip.Addr{}, err
	}
	at, ok := netip.AddrFromSlice(gateway)
	if !ok {
		return netip.Addr{}, errors.New("the default route has no router")
	}
	return at.Unmap(), nil
}

// portsMapped has peers learn of the ports, and those be tried again that are still relayed.
func (n *Node) portsMapped() {
	n.announceAgain()
	n.wake.send(portsMapped)
}
