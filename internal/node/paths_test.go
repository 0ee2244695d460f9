package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/punch"
)

// pair is two members and a relay, b reserved there.
func pair(t *testing.T) (m *mesh, relay, a, b *Node) {
	t.Helper()
	m = newMesh(t)
	relay, _ = m.relay(Config{})
	a, b = m.join(Config{}), m.join(Config{})
	serveEcho(a)
	serveEcho(b)
	eventually(t, "both reserve", func() bool { return reserved(a, 1)() && reserved(b, 1)() })
	return m, relay, a, b
}

func TestConnectReachesAPeerByTheRelayAlone(t *testing.T) {
	_, relay, a, b := pair(t)
	if err := a.Connect(t.Context(), b.self); err != nil {
		t.Fatal(err)
	}
	path, ok := a.Path(b.self)
	if !ok || path.Kind != "relay" || path.Relay != relay.self {
		t.Fatalf("path %+v, want the relay's", path)
	}
	if _, err := echo(t, a, b.self, Auto); err != nil {
		t.Error(err)
	}
}

func TestConnectToNobodyFailsAsUnreachable(t *testing.T) {
	m, relay, a, _ := pair(t)
	nobody, stop := m.start(Config{})
	stop()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := a.Connect(ctx, nobody.self)
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if tried := TriedIn(err); len(tried) != 1 || tried[0].Relay != relay.self || !strings.HasPrefix(tried[0].Why, "its quota") {
		t.Errorf("it is told as %+v: %v", tried, err)
	}
}

func TestConnectTakesWhatWasGoodLastTimeAndWhatIsFound(t *testing.T) {
	m := newMesh(t)
	b, c := m.join(Config{}), m.join(Config{})
	known := map[peer.ID][]ma.Multiaddr{b.self: b.ListenAddrs()[1:]}
	saved := make(chan peer.ID, 4)
	a := m.join(Config{
		Known: Known{
			Get: func(p peer.ID) []ma.Multiaddr { return known[p] },
			Set: func(p peer.ID, _ []ma.Multiaddr) { saved <- p },
		},
		Find: func(_ context.Context, p peer.ID) <-chan peer.AddrInfo {
			found := make(chan peer.AddrInfo, 1)
			if p == c.self {
				found <- peer.AddrInfo{ID: p, Addrs: c.ListenAddrs()}
			}
			close(found)
			return found
		},
	})
	for _, p := range []*Node{b, c} {
		if err := a.Connect(t.Context(), p.self); err != nil {
			t.Fatal(err)
		}
		if got := <-saved; got != p.self {
			t.Errorf("remembered %s, want %s", got, p.self)
		}
	}
}

func TestHeldPeerIsUpgradedToADirectPathAndWatchersSeeIt(t *testing.T) {
	_, _, a, b := pair(t)
	changes, stop := a.Watch()
	defer stop()
	release := a.Hold(b.self, Auto)
	defer release()
	relayed := false
	for timeout := time.After(patience); ; {
		select {
		case c := <-changes:
			if c.Peer != b.self {
				continue
			}
			relayed = relayed || c.New.Kind == "relay"
			if c.New.Kind != "direct" {
				continue
			}
		case <-timeout:
			path, _ := a.Path(b.self)
			t.Fatalf("no direct path: %+v", path)
		}
		break
	}
	if !relayed {
		t.Error("the relayed path before it was not told")
	}
	eventually(t, "b has it too", func() bool { p, _ := b.Path(a.self); return p.Kind == "direct" })
	if _, err := echo(t, a, b.self, Direct); err != nil {
		t.Error(err)
	}
	if c, err := echo(t, a, b.self, Relay); err != nil || relayOf(c.RemoteMultiaddr()) == "" {
		t.Errorf("the relayed connection is not kept as a way back: %v", err)
	}
	release()
	a.Host().Network().ClosePeer(b.self)
	eventually(t, "the direct path that was is remembered, though nothing is left", func() bool { return a.paths.hadDirect(b.self) })
}

// Whoever likes may come and go; what is kept of it is kept under the lock that all paths wait for.
func TestNothingIsKeptOfStrangersThatLeave(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	comeAndGo := func(n *Node) {
		t.Helper()
		if err := n.ConnectStranger(t.Context(), peer.AddrInfo{ID: relay.self, Addrs: relay.ListenAddrs()}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "come", func() bool { return relay.paths.has(n.self, Direct) })
		n.Host().Network().ClosePeer(relay.self)
		eventually(t, "gone", func() bool { return len(relay.paths.links(n.self)) == 0 })
	}
	stranger, _ := m.start(Config{Relay: true}) // as one, it reserves nowhere: nothing else dials
	member, _ := m.start(Config{Relay: true})
	m.set(member.self, true)
	comeAndGo(stranger)
	comeAndGo(member)
	if relay.paths.hadDirect(stranger.self) {
		t.Error("the stranger is remembered")
	}
	if !relay.paths.hadDirect(member.self) {
		t.Error("the member is not")
	}
}

// On a busy machine the first round trips of a direct connection may be long. It is not left standing until its next
// turn as a spare one.
func TestADirectPathThatBeganSlowlyIsMeasuredAgainSoon(t *testing.T) {
	_, _, a, b := pair(t)
	defer a.Hold(b.self, Auto)()
	direct := func() bool { p, _ := a.Path(b.self); return p.Kind == "direct" }
	eventually(t, "direct", direct)
	var slow []*link
	a.paths.mu.Lock()
	pp := a.paths.peers[b.self]
	for _, l := range pp.links {
		if l.direct() {
			l.rtt = time.Minute
			slow = append(slow, l)
		} else {
			pp.best = l
		}
	}
	relayed := !pp.best.direct()
	a.paths.mu.Unlock()
	if !relayed {
		t.Fatal("no relayed connection is left")
	}
	for _, l := range slow {
		l.again <- struct{}{}
	}
	eventually(t, "direct again", direct)
}

// Nor is one whose round trips were long for a while: at a spare one's pace its smoothed figure would take minutes to come
// down.
func TestADirectPathThatWasSlowForAWhileIsMeasuredAgainSoon(t *testing.T) {
	n, _ := newMesh(t).start(Config{Relay: true})
	p := peer.ID("p")
	relayed := &link{class: overRelay, rtt: 100 * time.Millisecond}
	direct := &link{since: time.Now().Add(-time.Hour), class: overInternet, least: 80 * time.Millisecond}
	n.paths.mu.Lock()
	n.paths.peers[p] = &peerPaths{best: relayed}
	n.paths.mu.Unlock()
	for rtt, want := range map[time.Duration]time.Duration{300 * time.Millisecond: slowEvery, 110 * time.Millisecond: standbyEvery} {
		n.paths.mu.Lock()
		direct.rtt = rtt
		n.paths.mu.Unlock()
		if got := n.paths.interval(p, direct, 0); got != want {
			t.Errorf("at %v measured again after %v, want %v", rtt, got, want)
		}
	}
	n.paths.mu.Lock()
	delete(n.paths.peers, p) // it has no connections to close
	n.paths.mu.Unlock()
}

func TestHoldForTheRelayAloneDoesNotPunch(t *testing.T) {
	_, _, a, b := pair(t)
	defer a.Hold(b.self, Relay)()
	eventually(t, "connected", func() bool { _, ok := a.Path(b.self); return ok })
	c, err := echo(t, a, b.self, Relay)
	if err != nil || relayOf(c.RemoteMultiaddr()) == "" {
		t.Fatalf("not over the relay: %v", err)
	}
	if a.paths.has(b.self, Direct) {
		t.Error("punched although only the relay was wanted")
	}
}

// Another forward to the same machine may want what the first one did not.
func TestAPeerHeldForTheRelayAloneIsPunchedAsSoonAsSomebodyWantsIt(t *testing.T) {
	_, _, a, b := pair(t)
	defer a.Hold(b.self, Relay)()
	eventually(t, "connected and measured", func() bool {
		links := a.paths.links(b.self)
		return len(links) == 1 && a.paths.rtt(links[0]) > 0
	})
	// The first measurements are over: nothing else looks for 15 s.
	eventually(t, "nothing moves", func() bool {
		news, stop := a.paths.listen(b.self)
		defer stop()
		select {
		case <-news:
			return false
		case <-time.After(time.Second):
			return true
		}
	})
	began := time.Now()
	defer a.Hold(b.self, Auto)()
	eventually(t, "direct", func() bool { return a.paths.has(b.self, Direct) })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("after %v", took)
	}
}

func TestOpenAvoidsASilentConnectionAndHasItClosed(t *testing.T) {
	_, _, a, b := pair(t)
	if err := a.Connect(t.Context(), b.self); err != nil {
		t.Fatal(err)
	}
	first, err := echo(t, a, b.self, Auto)
	if err != nil {
		t.Fatal(err)
	}
	// b stops answering pings: as good as dead.
	b.Host().RemoveStreamHandler(ping.ID)
	for _, s := range first.GetStreams() {
		if s.Protocol() == ping.ID {
			s.Reset()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := a.Open(ctx, b.self, echoProtocol, first, Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	if s.Conn() == first {
		t.Error("the stream took the connection to avoid")
	}
	if err := echoOn(s); err != nil {
		t.Error(err)
	}
	eventually(t, "the silent one is closed", first.IsClosed)
}

func TestOpenSharesOneAttempt(t *testing.T) {
	_, _, a, b := pair(t)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { errs <- a.Connect(t.Context(), b.self) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	relayed := 0
	for _, c := range a.parts.swarm.ConnsToPeer(b.self) {
		if relayOf(c.RemoteMultiaddr()) != "" {
			relayed++
		}
	}
	if relayed != 1 {
		t.Errorf("%d circuits for one peer over one relay", relayed)
	}
}

func TestPathOfARelayedPeerWhosePunchFailsSaysWhy(t *testing.T) {
	_, _, a, b := pair(t)
	if err := a.Connect(t.Context(), b.self); err != nil {
		t.Fatal(err)
	}
	b.Host().RemoveStreamHandler("/fwd/punch/1")
	changes, stop := a.Watch()
	defer stop()
	a.tryPunch(t.Context(), b.self)
	path, _ := a.Path(b.self)
	if path.Kind != "relay" || path.Reason == "" || strings.Contains(path.Reason, "stream") {
		t.Errorf("path %+v, want a relay with a reason, in plain words", path)
	}
	for told := ""; told != path.Reason; {
		select {
		case c := <-changes:
			told = c.New.Reason
		case <-time.After(patience):
			t.Fatal("watchers are not told why")
		}
	}
}

func TestAReasonIsReplacedByABetterOneAlone(t *testing.T) {
	m := newMesh(t)
	a := m.join(Config{})
	ended, end := context.WithCancel(t.Context())
	end()
	for _, c := range []struct {
		ctx  context.Context
		o    punch.Outcome
		err  error
		want string
	}{
		{t.Context(), punch.Outcome{}, errors.New("read report: EOF"), "The peer did not answer when asked for a direct path; it is asked again by itself"},
		{t.Context(), punch.Outcome{Reason: "Both NATs"}, nil, "Both NATs"},
		{t.Context(), punch.Outcome{}, errors.New("read report: EOF"), "Both NATs"},
		{ended, punch.Outcome{Reason: "half of it"}, ended.Err(), "Both NATs"},
		{t.Context(), punch.Outcome{Reason: "half of it"}, context.Canceled, "Both NATs"},
		{t.Context(), punch.Outcome{}, punch.ErrBusy, "Both NATs"},
		{t.Context(), punch.Outcome{Direct: true}, nil, ""},
	} {
		if a.punched(c.ctx, "p", c.o, c.err); a.reason("p") != c.want {
			t.Errorf("%+v, %v: %q, want %q", c.o, c.err, a.reason("p"), c.want)
		}
	}
}
