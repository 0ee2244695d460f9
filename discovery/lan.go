package discovery

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// lanSettle is how long after a start the answers of the LAN may still come
	// in: the first query goes out at once, answers take milliseconds on a
	// cable and up to a beacon interval or two on Wi-Fi.
	lanSettle = time.Second
	// lanKeep is how long an announcement counts: zeroconf repeats one to us
	// when its 3200 s have passed, and asks once a minute.
	lanKeep = 70 * time.Minute
	// lanQuiet is the least time between two restarts while our addresses stay
	// the same.
	lanQuiet = 10 * time.Second
	// lanRetry is when to try again where mDNS did not start: no address yet,
	// or no interface with multicast.
	lanRetry = 30 * time.Second
)

// lan finds members on the local network by mDNS and announces us there. What
// an announcement says is unsigned: a hint, to be proved by a handshake.
type lan struct {
	host    host.Host
	tag     func() string
	member  func(peer.ID) bool
	log     *slog.Logger
	restart chan struct{} // capacity 1

	mu      sync.Mutex
	started time.Time // zero: not running
	seen    map[peer.ID][]lanAddr
	watch   map[chan struct{}]peer.ID
}

type lanAddr struct {
	addr ma.Multiaddr
	at   time.Time
}

func newLAN(h host.Host, network func() string, member func(peer.ID) bool, log *slog.Logger) *lan {
	return &lan{
		host: h, tag: func() string { return lanTag(network()) }, member: member, log: log,
		restart: make(chan struct{}, 1),
		seen:    make(map[peer.ID][]lanAddr),
		watch:   make(map[chan struct{}]peer.ID),
	}
}

// lanTag is the DNS-SD service of a network, so that networks of strangers on
// one LAN do not wake each other. A service name has at most 15 characters
// (RFC 6335): "fwd-" and 55 bits of a hash.
func lanTag(network string) string {
	sum := sha256.Sum256([]byte("fwd-mdns" + network))
	return "_fwd-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:11] + "._udp"
}

// serve runs mDNS until ctx ends. The library takes the interfaces once, at
// its start, so it is started anew when told to.
func (l *lan) serve(ctx context.Context) {
	var running mdns.Service
	var announced []ma.Multiaddr
	var tag string
	var at time.Time
	stop := func() {
		if running != nil {
			l.setStarted(time.Time{})
			running.Close()
			running = nil
		}
	}
	defer stop()
	for {
		addrs, now := lanAddrs(l.host), l.tag()
		if running == nil || time.Since(at) > lanQuiet || now != tag || !sameAddrs(addrs, announced) {
			stop()
			at, announced, tag = time.Now(), addrs, now
			s := mdns.NewMdnsService(lanHost{l.host, addrs}, tag, l)
			if err := s.Start(); err != nil {
				s.Close()
				l.log.Debug("mDNS did not start", "error", err)
			} else {
				running = s
				l.setStarted(at)
			}
		}
		var retry <-chan time.Time
		if running == nil {
			retry = time.After(lanRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-l.restart:
		case <-retry:
		}
	}
}

func (l *lan) setStarted(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.started = t
}

// HandlePeerFound takes an announcement; see mdns.Notifee. The newest address
// comes first, so that somebody who floods us with wrong ones can crowd out
// the right ones only until they are announced again.
func (l *lan) HandlePeerFound(info peer.AddrInfo) {
	if info.ID == l.host.ID() || !l.member(info.ID) {
		return
	}
	now := time.Now()
	fresh := make([]lanAddr, 0, MaxAddrs)
	for _, a := range boundAddrs(info.Addrs) {
		if usableOnLAN(a) {
			fresh = append(fresh, lanAddr{a, now})
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, old := range l.seen[info.ID] {
		known := slices.ContainsFunc(fresh, func(f lanAddr) bool { return f.addr.Equal(old.addr) })
		if !known && len(fresh) < MaxAddrs && now.Sub(old.at) < lanKeep {
			fresh = append(fresh, old)
		}
	}
	l.seen[info.ID] = fresh
	for p := range l.seen {
		if !l.member(p) { // bounds the table by the roster
			delete(l.seen, p)
		}
	}
	for ch, p := range l.watch {
		if p == info.ID {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
}

// find hands on p's addresses now and as they come in, until ctx ends.
func (l *lan) find(ctx context.Context, p peer.ID, give func(peer.AddrInfo) bool) {
	heard := make(chan struct{}, 1)
	l.mu.Lock()
	l.watch[heard] = p
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.watch, heard)
	}()
	for {
		if info := l.addrs(p); len(info.Addrs) > 0 && !give(info) {
			return
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return
		}
	}
}

func (l *lan) addrs(p peer.ID) peer.AddrInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	info := peer.AddrInfo{ID: p}
	for _, a := range l.seen[p] {
		if time.Since(a.at) < lanKeep {
			info.Addrs = append(info.Addrs, a.addr)
		}
	}
	return info
}

// settle is how long answers to the query at the last start may still arrive.
func (l *lan) settle() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.started.IsZero() {
		return 0
	}
	return max(0, lanSettle-time.Since(l.started))
}

// usableOnLAN leaves out what another machine cannot or must not dial on
// account of an unsigned packet: loopback, names, and circuits.
func usableOnLAN(a ma.Multiaddr) bool {
	if len(a) == 0 {
		return false
	}
	if c := a[0].Protocol().Code; c != ma.P_IP4 && c != ma.P_IP6 && c != ma.P_IP6ZONE {
		return false
	}
	for _, c := range a {
		if c.Protocol().Code == ma.P_CIRCUIT {
			return false
		}
	}
	return !manet.IsIPLoopback(a) && !manet.IsIPUnspecified(a)
}

// lanAddrs are the host's own addresses that are announced on the LAN. The
// interfaces are asked here, since the swarm's answer may be a minute old.
func lanAddrs(h host.Host) []ma.Multiaddr {
	system, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var all []iface
	for _, i := range system {
		if addrs, err := i.Addrs(); err == nil {
			all = append(all, iface{i.Name, i.Flags, addrs})
		}
	}
	return announcedAt(h.Network().ListenAddresses(), all)
}

// iface is one of this machine's.
type iface struct {
	name  string
	flags net.Flags
	addrs []net.Addr
}

// announcedAt are the addresses that whoever is on a LAN of ours is told. The
// library says the same on each interface, and strangers hear it. So what no
// neighbour dials is left out: the ends of tunnels, interfaces where nothing is
// announced, and bridges to containers and virtual machines, unless the
// machine has no other LAN.
func announcedAt(listening []ma.Multiaddr, all []iface) []ma.Multiaddr {
	var lans, bridges []ma.Multiaddr
	for _, i := range all {
		if i.flags&net.FlagUp == 0 || i.flags&net.FlagMulticast == 0 || i.flags&net.FlagPointToPoint != 0 {
			continue
		}
		to := &lans
		if virtualBridge.MatchString(i.name) {
			to = &bridges
		}
		for _, a := range i.addrs {
			if ip, err := manet.FromNetAddr(a); err == nil && usableOnLAN(ip) && !manet.IsIP6LinkLocal(ip) {
				*to = append(*to, ip)
			}
		}
	}
	if len(lans) == 0 {
		lans = bridges
	}
	if len(lans) == 0 { // the library's function would take it for "ask the system"
		return nil
	}
	addrs, err := manet.ResolveUnspecifiedAddresses(listening, lans)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(addrs, func(a ma.Multiaddr) bool {
		return !slices.ContainsFunc(lans, func(ip ma.Multiaddr) bool { return len(a) > 0 && a[0].Equal(&ip[0]) })
	})
}

// virtualBridge matches the names that Docker, Podman, libvirt, LXC, Kubernetes,
// VMware and VirtualBox give to bridges whose other side is this machine.
var virtualBridge = regexp.MustCompile(`^(docker\d+|br-[0-9a-f]{12}|podman\d+|virbr\d+|lxcbr\d+|lxdbr\d+|incusbr\d+|cni\d+|vmnet\d+|vboxnet\d+)$`)

func sameAddrs(a, b []ma.Multiaddr) bool {
	return slices.EqualFunc(a, b, func(x, y ma.Multiaddr) bool { return x.Equal(y) })
}

// lanHost is a host whose interface addresses are those given: the library
// would announce loopback as well.
type lanHost struct {
	host.Host
	addrs []ma.Multiaddr
}

func (h lanHost) Network() network.Network { return lanNetwork{h.Host.Network(), h.addrs} }

type lanNetwork struct {
	network.Network
	addrs []ma.Multiaddr
}

func (n lanNetwork) InterfaceListenAddresses() ([]ma.Multiaddr, error) { return n.addrs, nil }
