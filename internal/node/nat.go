package node

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"fwd/internal/punch"
)

// reflectProtocol is served by relays: the answer is the address at which they see the connection, as
// a uvarint length and that many bytes of multiaddr.
const reflectProtocol protocol.ID = "/fwd/reflect/1"

const (
	// observedFor is how long an answer holds; the mapping of a living connection does not change
	// without the connection's.
	observedFor = 5 * time.Minute
	// observeWithin is how long a relay may take to answer.
	observeWithin = 2 * time.Second
	// maxMultiaddr is the most bytes that are taken for an address.
	maxMultiaddr = 512
)

// NATReport is what this node knows of its way to the internet, for status.
type NATReport struct {
	Reachability string // "public" if some address can be dialled from the internet, else "private"
	UDP, TCP     string // mapping: "none", "endpoint-independent", "endpoint-dependent", "unknown"
	PortMapping  string // "none", "found" (a router that maps, but gave no public address), "mapped"
	Public       []ma.Multiaddr
	Observed     []ma.Multiaddr // as the relays see us
}

// natView remembers how the relays see each of our connections to them.
type natView struct {
	node *Node
	mu   sync.Mutex
	seen map[*link]observation
}

type observation struct {
	addr ma.Multiaddr
	at   time.Time
}

func newNATView(n *Node) *natView { return &natView{node: n, seen: make(map[*link]observation)} }

// forget drops what was seen in another network.
func (v *natView) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.seen)
}

// refresh asks, on every direct connection to a relay of the roster, at which address it is seen. It
// returns when all have answered or their time is up.
func (v *natView) refresh(ctx context.Context) map[*link]observation {
	var links []*link
	for _, r := range v.node.cfg.Relays() {
		for _, l := range v.node.paths.links(r.ID) {
			if l.direct() && v.node.addrs.ownPort(l.conn) {
				links = append(links, l)
			}
		}
	}
	var wg sync.WaitGroup
	now := time.Now()
	for _, l := range links {
		v.mu.Lock()
		known, ok := v.seen[l]
		v.mu.Unlock()
		if ok && now.Sub(known.at) < observedFor {
			continue
		}
		wg.Go(func() {
			addr, err := observe(ctx, l.conn)
			if err != nil {
				v.node.log.Debug("relay does not say how it sees us", "relay", l.conn.RemotePeer(), "err", err)
				return
			}
			v.mu.Lock()
			defer v.mu.Unlock()
			v.seen[l] = observation{addr, now}
		})
	}
	wg.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make(map[*link]observation)
	for l, o := range v.seen {
		if slices.Contains(links, l) {
			out[l] = o
		} else {
			delete(v.seen, l)
		}
	}
	return out
}

// observe asks the peer at the other end of c at which address it sees this very connection.
func observe(ctx context.Context, c network.Conn) (ma.Multiaddr, error) {
	ctx, cancel := context.WithTimeout(ctx, observeWithin)
	defer cancel()
	s, err := openOn(ctx, c, reflectProtocol)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	// Sends the protocol's name. An error means that the answer came first, and the relay's end of the
	// stream with it.
	s.CloseWrite()
	return readAddr(s)
}

// readAddr reads one length-prefixed multiaddr.
func readAddr(r io.Reader) (ma.Multiaddr, error) {
	in := bufio.NewReader(io.LimitReader(r, maxMultiaddr+binary.MaxVarintLen64))
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return nil, err
	}
	if size == 0 || size > maxMultiaddr {
		return nil, fmt.Errorf("address of %d bytes; 1 to %d are taken", size, maxMultiaddr)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, err
	}
	a, err := ma.NewMultiaddrBytes(b)
	if err != nil {
		return nil, err
	}
	if !isIP(a) {
		return nil, errors.New("not an IP address")
	}
	return a, nil
}

// report is our NAT report, from what relays say now.
func (v *natView) report(ctx context.Context) punch.Report {
	seen := v.refresh(ctx)
	local := v.node.addrs.local()
	return punch.Report{
		UDP:       classify(seen, local, "quic-v1"),
		TCP:       classify(seen, local, "tcp"),
		LAN:       v.node.addrs.lan(),
		Confirmed: v.node.addrs.confirmed(),
	}
}

// classify says how one transport's port is mapped, by what different relays see of it.
func classify(seen map[*link]observation, local []ma.Multiaddr, transport string) punch.Transport {
	t := punch.Transport{Kept: true}
	observers := make(map[string]bool) // by address: what two connections to one relay show proves nothing
	ours := true
	var found []observed
	for l, o := range seen {
		if transportOf(o.addr) != transport {
			continue
		}
		found = append(found, observed{o.addr, l.since})
		observers[hostOf(l.conn.RemoteMultiaddr())] = true
		ours = ours && ma.Contains(local, o.addr)
		t.Kept = t.Kept && slices.ContainsFunc(local, func(a ma.Multiaddr) bool { return portOf(a) == portOf(o.addr) && transportOf(a) == transport })
	}
	if len(found) == 0 {
		return punch.Transport{}
	}
	// The newest first: a NAT that was restarted has forgotten what older connections show.
	slices.SortFunc(found, func(a, b observed) int { return b.since.Compare(a.since) })
	ports := make(map[string]bool) // per address family: each has a NAT of its own
	families := make(map[string]bool)
	for _, o := range found {
		if !ma.Contains(t.Observed, o.addr) {
			t.Observed = append(t.Observed, o.addr)
		}
		ports[o.addr[0].Protocol().Name+portOf(o.addr)] = true
		families[o.addr[0].Protocol().Name] = true
	}
	switch {
	case ours:
		t.Mapping = punch.None
	case len(ports) > len(families):
		t.Mapping = punch.Dependent
	case len(observers) > len(families):
		t.Mapping = punch.Independent
	}
	return t
}

type observed struct {
	addr  ma.Multiaddr
	since time.Time
}

func hostOf(a ma.Multiaddr) string { return a[0].Value() }

func portOf(a ma.Multiaddr) string {
	if len(a) < 2 {
		return ""
	}
	return a[1].Value()
}

// NAT says what this node knows of its way to the internet. It asks nobody anew.
func (n *Node) NAT() NATReport {
	n.nat.mu.Lock()
	seen := make(map[*link]observation, len(n.nat.seen))
	for l, o := range n.nat.seen {
		seen[l] = o
	}
	n.nat.mu.Unlock()
	local := n.addrs.local()
	udp, tcp := classify(seen, local, "quic-v1"), classify(seen, local, "tcp")
	r := NATReport{
		Reachability: "private", PortMapping: "none",
		UDP: mappingName(udp.Mapping), TCP: mappingName(tcp.Mapping),
		Public: n.addrs.confirmed(), Observed: slices.Concat(udp.Observed, tcp.Observed),
	}
	if len(r.Public) > 0 {
		r.Reachability = "public"
	}
	if found, mapped := n.addrs.mapped(); found {
		r.PortMapping = "found"
		if slices.ContainsFunc(mapped, manet.IsPublicAddr) {
			r.PortMapping = "mapped"
		}
	}
	return r
}

func mappingName(m punch.Mapping) string {
	if m == punch.Unknown {
		return "unknown"
	}
	return string(m)
}
