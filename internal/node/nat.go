package node

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"fwd/internal/punch"
)

// observedFor is how long an answer holds; the mapping of a living connection does not change
// without the connection's.
const observedFor = 5 * time.Minute

// NATReport is what this node knows of its way to the internet, for status.
type NATReport struct {
	Reachability string // "public" if some address can be dialled from the internet, else "private"
	UDP, TCP     string // mapping: "none", "endpoint-independent", "endpoint-dependent", "blocked" (between here and the relays), "unknown"
	// Filtering is "endpoint-independent", "address-dependent" (with one relay: that or less),
	// "address-and-port-dependent", "unknown"; of UDP over IPv4.
	Filtering   string
	Ports       string // how new UDP flows get theirs: "kept", "changed", "sequential", "block", "random", "unknown"
	PortMapping string // "none", "found" (a router that maps, but gave no public address), "mapped"
	DoubleNAT   bool   // the router that maps ports is itself behind another one
	IPv6        bool   // relays see us by IPv6
	Public      []ma.Multiaddr
	Observed    []ma.Multiaddr // as the relays see us
}

// natView remembers how the relays see each of our connections to them.
type natView struct {
	node   *Node
	mu     sync.Mutex
	seen   map[*link]observation
	asking map[*link]chan struct{} // closed when the relay has answered
	exam   *examination            // the latest
}

type observation struct {
	reflected
	at     time.Time
	second ma.Multiaddr // as the relay's second TCP port sees our port; nil: not known
}

// ClockOff is by how much this machine's clock is behind the relays', whichever is in the middle; negative: ahead. False
// where none has been asked, or not since the machine slept or its clock was set.
func (n *Node) ClockOff() (behind time.Duration, ok bool) {
	n.nat.mu.Lock()
	defer n.nat.mu.Unlock()
	now := time.Now()
	var offs []time.Duration
	for _, o := range n.nat.seen {
		since := now.Sub(o.at)
		stepped := (now.Round(0).Sub(o.at.Round(0)) - since).Abs() > time.Minute
		if !stepped && !o.proof.At.IsZero() {
			offs = append(offs, o.proof.At.Add(since).Sub(now.Round(0)))
		}
	}
	if len(offs) == 0 {
		return 0, false
	}
	slices.Sort(offs)
	return offs[len(offs)/2], true
}

func newNATView(n *Node) *natView {
	return &natView{node: n, seen: make(map[*link]observation), asking: make(map[*link]chan struct{})}
}

// forget drops what was seen in another network.
func (v *natView) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.seen)
	v.exam = nil
}

// refresh asks, on every direct connection to a relay of the roster, at which address it is seen. It
// returns when all have answered or their time is up.
func (v *natView) refresh(ctx context.Context) map[*link]observation {
	var links []*link
	for _, r := range v.node.cfg.Relays() {
		for _, l := range v.node.paths.links(r.ID) {
			if l.direct() && !l.retiring.Load() && v.node.addrs.ownPort(l.conn) {
				links = append(links, l)
			}
		}
	}
	links = newest(links)
	var wg sync.WaitGroup
	for _, l := range links {
		wg.Go(func() {
			select {
			case <-v.ask(l):
			case <-ctx.Done():
			}
		})
	}
	wg.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make(map[*link]observation)
	for l, o := range v.seen {
		switch {
		case slices.Contains(links, l):
			out[l] = o
		case l.conn.IsClosed(): // one that is newer than links is another refresh's
			delete(v.seen, l)
		}
	}
	return out
}

// ask asks a relay, unless its last answer still holds or somebody asks already; answered is closed then.
func (v *natView) ask(l *link) (answered chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if c := v.asking[l]; c != nil {
		return c
	}
	answered = make(chan struct{})
	if known, ok := v.seen[l]; ok && time.Since(known.at) < observedFor || !v.node.tasks.start(func() { v.observe(l, answered) }) {
		close(answered)
		return answered
	}
	v.asking[l] = answered
	return answered
}

func (v *natView) observe(l *link, answered chan struct{}) {
	answer, err := observe(v.node.ctx, l.conn)
	v.mu.Lock()
	delete(v.asking, l)
	if err == nil {
		v.seen[l] = observation{reflected: answer, at: time.Now()}
	}
	close(answered)
	v.mu.Unlock()
	if err != nil {
		v.node.log.Debug("relay does not say how it sees us", "relay", l.conn.RemotePeer(), "err", err)
		return
	}
	v.node.log.Debug("seen by a relay", "relay", l.conn.RemoteMultiaddr(), "at", answer.addr)
	v.askTCP(l, answer) // nobody waits: where that port is closed it takes long
}

// way is one of the ways to a relay.
type way struct {
	relay         peer.ID
	ip, transport string
}

func wayOf(l *link) way {
	a := l.conn.RemoteMultiaddr()
	return way{l.conn.RemotePeer(), a[0].Protocol().Name, transportOf(a)}
}

// sights are the addresses at which relays saw us last, by each way to them.
func (v *natView) sights() map[way]ma.Multiaddr {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make(map[way]ma.Multiaddr)
	for _, l := range newest(slices.Collect(maps.Keys(v.seen))) {
		out[wayOf(l)] = v.seen[l].addr
	}
	return out
}

// elsewhere says whether any way that was there before shows us at another address now.
func elsewhere(before, now map[way]ma.Multiaddr) bool {
	for w, a := range before {
		if b := now[w]; b != nil && !b.Equal(a) {
			return true
		}
	}
	return false
}

// newest are the latest connections to each relay, by each transport and IP version: a relay goes on seeing an older one
// where it began, even if it lives on in another network.
func newest(links []*link) []*link {
	latest := make(map[way]*link)
	for _, l := range links {
		if w := wayOf(l); latest[w] == nil || l.since.After(latest[w].since) {
			latest[w] = l
		}
	}
	return slices.Collect(maps.Values(latest))
}

// look has all of it looked at anew where it is too old; it does not wait for the examination.
func (v *natView) look(ctx context.Context) { v.examine(v.refresh(ctx)) }

// keep looks every now and then, until ctx ends.
func (v *natView) keep(ctx context.Context) {
	tick := time.NewTicker(observedFor)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			v.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// report is our NAT report, from what relays say now.
func (v *natView) report(ctx context.Context) punch.Report {
	seen := v.refresh(ctx)
	select {
	case <-v.examine(seen):
	case <-ctx.Done():
	}
	r := v.known(seen)
	if r.UDP.Mapping == punch.Dependent && r.UDP.Ports.Order == punch.Sequential {
		if last, ok := v.latest(ctx, seen); ok {
			r.UDP.Ports.Last = last
		}
	}
	return r
}

// known is the report from what was seen.
func (v *natView) known(seen map[*link]observation) punch.Report {
	local := v.node.addrs.local()
	r := punch.Report{
		UDP:       classify(seen, local, "quic-v1"),
		TCP:       classify(seen, local, "tcp"),
		LAN:       v.node.addrs.lan(),
		Confirmed: v.node.addrs.confirmed(),
		Router:    punch.Router{PortMapping: "none"},
	}
	v.mu.Lock()
	if e := v.exam; e != nil {
		if r.UDP.Mapping == punch.Unknown || e.mapping == punch.Dependent {
			r.UDP.Mapping = e.mapping
		}
		r.UDP.Filtering = e.filtering
		if r.UDP.Mapping == punch.Dependent {
			r.UDP.Ports = e.ports
		}
	}
	v.mu.Unlock()
	if at, ok := r.Seen4(); ok {
		for _, o := range seen {
			if us, ok := quicAddrPort(o.addr); ok && us == at && len(o.proof.Signature) > 0 {
				r.Proof = o.proof
			}
		}
	}
	if found, mapped := v.node.addrs.mapped(); found {
		r.Router.PortMapping = "found"
		for _, a := range mapped {
			if manet.IsPublicAddr(a) {
				r.Router.PortMapping = "mapped"
			} else {
				// The router is in a private network itself: a carrier's, whose other customers may get there.
				r.Router.Double = true
				r.LAN = slices.Insert(r.LAN, min(1, len(r.LAN)), a) // not last: reports are cut
			}
		}
	}
	return r
}

// quicAddrPort is the address of a QUIC multiaddr.
func quicAddrPort(a ma.Multiaddr) (netip.AddrPort, bool) {
	if transportOf(a) != "quic-v1" {
		return netip.AddrPort{}, false
	}
	return addrPortOf(a)
}

// addrPortOf is the IP address and port of one that isIP.
func addrPortOf(a ma.Multiaddr) (netip.AddrPort, bool) {
	ap, err := netip.ParseAddrPort(net.JoinHostPort(hostOf(a), portOf(a)))
	return unmapped(ap), err == nil
}

// classify says how one transport's port is mapped, by what different relays see of it.
func classify(seen map[*link]observation, local []ma.Multiaddr, transport string) punch.Transport {
	t := punch.Transport{Kept: true}
	observers := make(map[string]bool) // by address: what two connections to one relay show proves nothing
	ports := make(map[string]bool)
	ours := true
	var found []observed
	outside := make(map[string]bool) // address families in which somebody sees us from outside our network
	for _, o := range seen {
		if transportOf(o.addr) == transport && manet.IsPublicAddr(o.addr) {
			outside[o.addr[0].Protocol().Name] = true
		}
	}
	for l, o := range seen {
		if transportOf(o.addr) != transport || outside[o.addr[0].Protocol().Name] && !manet.IsPublicAddr(o.addr) {
			continue // a relay in our own network sees us before any NAT
		}
		found = append(found, observed{o.addr, l.since})
		observers[hostOf(l.conn.RemoteMultiaddr())] = true
		ours = ours && ma.Contains(local, o.addr)
		ports[o.addr[0].Protocol().Name+portOf(o.addr)] = true // per address family: each has a NAT of its own
		if o.second != nil {
			ports[o.second[0].Protocol().Name+portOf(o.second)] = true
			observers[hostOf(l.conn.RemoteMultiaddr())+" by another port"] = true
		}
		t.Kept = t.Kept && slices.ContainsFunc(local, func(a ma.Multiaddr) bool { return portOf(a) == portOf(o.addr) && transportOf(a) == transport })
	}
	if len(found) == 0 {
		return punch.Transport{}
	}
	// The newest first: a NAT that was restarted has forgotten what older connections show.
	slices.SortFunc(found, func(a, b observed) int { return b.since.Compare(a.since) })
	families := make(map[string]bool)
	for _, o := range found {
		if !ma.Contains(t.Observed, o.addr) {
			t.Observed = append(t.Observed, o.addr)
		}
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
	for _, l := range newest(slices.Collect(maps.Keys(n.nat.seen))) {
		seen[l] = n.nat.seen[l]
	}
	n.nat.mu.Unlock()
	k := n.nat.known(seen)
	r := NATReport{
		Reachability: "private", PortMapping: k.Router.PortMapping, DoubleNAT: k.Router.Double,
		UDP: mappingName(k.UDP), TCP: mappingName(k.TCP), Filtering: string(k.UDP.Filtering), Ports: string(k.UDP.Ports.Order),
		Public: k.Confirmed, Observed: slices.Concat(k.UDP.Observed, k.TCP.Observed),
	}
	if len(k.UDP.Observed) == 0 && slices.ContainsFunc(slices.Collect(maps.Keys(seen)), n.leadsToUDP) {
		r.UDP = "blocked"
	}
	if r.Filtering == "" {
		r.Filtering = "unknown"
	}
	switch {
	case k.UDP.Kept:
		r.Ports = "kept"
	case k.UDP.Mapping == punch.Independent:
		r.Ports = "changed"
	case r.Ports == "":
		r.Ports = "unknown"
	}
	r.IPv6 = slices.ContainsFunc(r.Observed, func(a ma.Multiaddr) bool { return a[0].Protocol().Code == ma.P_IP6 })
	if len(r.Public) > 0 {
		r.Reachability = "public"
	}
	return r
}

// leadsToUDP says whether a connection's relay has an address by UDP, too.
func (n *Node) leadsToUDP(l *link) bool {
	relay, _ := n.relayInfo(l.conn.RemotePeer())
	return slices.ContainsFunc(relay.Addrs, func(a ma.Multiaddr) bool { return transportOf(a) == "quic-v1" })
}

func mappingName(t punch.Transport) string {
	if t.Mapping == punch.Unknown {
		return "unknown"
	}
	return string(t.Mapping)
}
