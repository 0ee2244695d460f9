package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"fwd/itest/leaks"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func everyone(peer.ID) bool { return true }

func oneKey() [][]byte { return [][]byte{[]byte("discovery key")} }

// newFinder makes a Finder that announces addr.
func newFinder(t testing.TB, h host.Host, addr string, points []*fakePoint, change ...func(*Config)) *Finder {
	t.Helper()
	cfg := Config{
		Host: h, Network: func() string { return "net" }, Keys: oneKey, Member: everyone,
		Points: func() []peer.ID {
			var ids []peer.ID
			for _, p := range points {
				ids = append(ids, p.host.ID())
			}
			return ids
		},
		Addrs: func() []ma.Multiaddr { return []ma.Multiaddr{ma.StringCast(addr)} },
	}
	for _, c := range change {
		c(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		connect(t, h, p.host)
	}
	return f
}

// serve runs f until the test ends.
func serve(t testing.TB, f *Finder) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Serve(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("Serve did not return")
		}
	})
	t.Cleanup(stop)
	return stop
}

// find is all that f says of p, as text, address → how often.
func find(t testing.TB, f *Finder, p peer.ID) map[string]int {
	t.Helper()
	got := make(map[string]int)
	for info := range f.Find(testCtx(t), p) {
		if info.ID != p || len(info.Addrs) > MaxAddrs {
			t.Errorf("answer %v", info)
		}
		for _, a := range info.Addrs {
			got[a.String()]++
		}
	}
	return got
}

func TestWhoeverServesIsFoundByTheOthers(t *testing.T) {
	points := []*fakePoint{newFakePoint(t), newFakePoint(t)}
	nas := newHost(t)
	serve(t, newFinder(t, nas, "/ip4/192.0.2.1/tcp/4001", points))
	laptop := newFinder(t, newHost(t), "/ip4/192.0.2.2/tcp/4001", points)
	eventually(t, "found", func() bool { return len(find(t, laptop, nas.ID())) > 0 })
	if got := find(t, laptop, nas.ID()); len(got) != 1 || got["/ip4/192.0.2.1/tcp/4001"] != 1 {
		t.Errorf("found %v", got)
	}
}

func TestFirstAnswersComeFirst(t *testing.T) {
	p := newFakePoint(t)
	mute := make(chan struct{})
	p.mute = mute
	nas := newHost(t)
	known := ma.StringCast("/ip4/192.0.2.9/tcp/1")
	f := newFinder(t, newHost(t), "/ip4/192.0.2.2/tcp/1", []*fakePoint{p}, func(c *Config) {
		c.Known = func(peer.ID) []ma.Multiaddr { return []ma.Multiaddr{known} }
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	ch := f.Find(ctx, nas.ID())
	if info := <-ch; len(info.Addrs) != 1 || !info.Addrs[0].Equal(known) {
		t.Errorf("first %v", info)
	}
	cancel()
	close(mute)
	for range ch {
	}
}

func TestAnswersAreBoundedAndToldOnce(t *testing.T) {
	p := newFakePoint(t)
	nas := newHost(t)
	var many []ma.Multiaddr
	for i := range 500 {
		many = append(many, ma.StringCast(fmt.Sprintf("/ip4/192.0.2.1/tcp/%d", 1+i/2)))
	}
	f := newFinder(t, newHost(t), "/ip4/192.0.2.2/tcp/1", []*fakePoint{p}, func(c *Config) {
		c.Known = func(peer.ID) []ma.Multiaddr { return many }
	})
	rec := mustSeal(t, nas.Peerstore().PrivKey(nas.ID()), addressRecord{Network: "net",
		Namespace: Namespace(oneKey()[0], nas.ID()), Addrs: many[:3]})
	p.tamper = func(string) [][]byte { return [][]byte{rec, rec} }
	got := find(t, f, nas.ID())
	if len(got) != MaxAddrs {
		t.Errorf("%d addresses", len(got))
	}
	for a, n := range got {
		if n != 1 {
			t.Errorf("%s was told %d times", a, n)
		}
	}
}

func TestStrangersAndSelfAreNotLookedFor(t *testing.T) {
	h, stranger := newHost(t), newHost(t)
	f := newFinder(t, h, "/ip4/192.0.2.2/tcp/1", nil, func(c *Config) {
		c.Member = func(p peer.ID) bool { return p == h.ID() }
		c.Known = func(peer.ID) []ma.Multiaddr { t.Error("asked"); return nil }
	})
	if got := find(t, f, stranger.ID()); len(got) != 0 {
		t.Errorf("found a stranger at %v", got)
	}
	if got := find(t, f, h.ID()); len(got) != 0 {
		t.Errorf("found myself at %v", got)
	}
}

func TestOldKeysFindRelaysStill(t *testing.T) {
	p := newFakePoint(t)
	relay := newHost(t)
	serve(t, newFinder(t, relay, "/ip4/192.0.2.1/tcp/4001", []*fakePoint{p}, func(c *Config) {
		c.Keys = func() [][]byte {
			var keys [][]byte
			for i := range 12 {
				keys = append(keys, []byte{byte(i)})
			}
			return keys
		}
	}))
	after := func(i byte) map[string]int {
		f := newFinder(t, newHost(t), "/ip4/192.0.2.2/tcp/1", []*fakePoint{p}, func(c *Config) {
			c.Keys = func() [][]byte { return [][]byte{{i}} }
		})
		return find(t, f, relay.ID())
	}
	eventually(t, "announced", func() bool { return p.count() == maxKeys })
	if len(after(0)) != 1 || len(after(8)) != 1 || len(after(9)) != 0 {
		t.Error("want to be found under the current key and the last 8, and no others")
	}
}

func TestUnreachablePointIsTriedAgainUntilItAnswers(t *testing.T) {
	p := newFakePoint(t)
	p.refuse = 5
	serve(t, newFinder(t, newHost(t), "/ip4/192.0.2.1/tcp/4001", []*fakePoint{p}))
	eventually(t, "two tries", func() bool { return p.count() >= 2 })
	p.set(func() { p.refuse = statusOK })
	eventually(t, "registered", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.records) == 1
	})
}

func TestRestartedPointIsToldAtOnce(t *testing.T) {
	p := newFakePoint(t)
	h := newHost(t)
	serve(t, newFinder(t, h, "/ip4/192.0.2.1/tcp/4001", []*fakePoint{p}))
	eventually(t, "announced", func() bool { return p.count() == 1 })
	p.host.Network().ClosePeer(h.ID())
	eventually(t, "disconnected", func() bool { return len(h.Network().ConnsToPeer(p.host.ID())) == 0 })
	connect(t, h, p.host)
	eventually(t, "announced again", func() bool { return p.count() >= 2 })
}

func TestAnnounceSpeaksAtOnceAndWithTheNewAddress(t *testing.T) {
	p := newFakePoint(t)
	var mu sync.Mutex
	addr := "/ip4/192.0.2.1/tcp/4001"
	nas := newHost(t)
	f := newFinder(t, nas, "", []*fakePoint{p}, func(c *Config) {
		c.Addrs = func() []ma.Multiaddr {
			mu.Lock()
			defer mu.Unlock()
			return []ma.Multiaddr{ma.StringCast(addr)}
		}
	})
	serve(t, f)
	eventually(t, "announced", func() bool { return p.count() == 1 })
	mu.Lock()
	addr = "/ip4/192.0.2.7/tcp/4001"
	mu.Unlock()
	f.Announce()
	laptop := newFinder(t, newHost(t), "/ip4/192.0.2.2/tcp/1", []*fakePoint{p})
	eventually(t, "found at the new address", func() bool {
		return find(t, laptop, nas.ID())["/ip4/192.0.2.7/tcp/4001"] == 1
	})
}

func TestRenewalComesBeforeTheEnd(t *testing.T) {
	f := &Finder{cfg: Config{Log: discard()}}
	s := &schedule{busy: true, backoff: time.Second}
	f.record(s, outcome{place{point: "p"}, time.Hour, nil})
	if d := time.Until(s.due); d > time.Hour*7/8 || d < time.Hour*7/8-time.Minute || s.busy || s.backoff != 0 {
		t.Errorf("due in %v", d)
	}
	f.record(s, outcome{place{point: "p"}, time.Second, nil})
	if d := time.Until(s.due); d < renewMin-time.Second {
		t.Errorf("a point that grants 1 s is asked again in %v", d)
	}
}

func TestRetriesGrowFromAFifthToFiveSeconds(t *testing.T) {
	f := &Finder{cfg: Config{Log: discard()}}
	s := &schedule{}
	for i := range 20 {
		f.record(s, outcome{place{point: "p"}, 0, errMalformed})
		want := min(retryMin<<i, retryMax)
		if d := time.Until(s.due); d > want*13/10 || d < want*7/10-time.Second/10 {
			t.Errorf("retry %d in %v, want about %v", i, d, want)
		}
		if i == 10 {
			break
		}
	}
	s.busy = true
	s.now()
	f.record(s, outcome{place{point: "p"}, time.Hour, nil})
	if time.Until(s.due) > 0 {
		t.Error("an announcement asked for during an attempt was lost")
	}
}

func TestServeEndsAllItBegan(t *testing.T) {
	p := newFakePoint(t)
	mute := make(chan struct{})
	defer close(mute)
	p.mute = mute
	f := newFinder(t, newHost(t), "/ip4/192.0.2.1/tcp/4001", []*fakePoint{p})
	before := goleak.IgnoreCurrent()
	stop := serve(t, f)
	eventually(t, "an attempt hangs", func() bool { return len(p.host.Network().Conns()[0].GetStreams()) > 0 })
	stop()
	leaks.None(t, before, goleak.IgnoreAnyFunction("fwd/discovery.(*fakePoint).handle"))
}

// newDHT makes a host with a DHT, known to be member by all.
func newDHT(t testing.TB, server bool, member func(peer.ID) bool, keys func() [][]byte) (host.Host, *dht.IpfsDHT) {
	t.Helper()
	h := newHost(t)
	d, err := NewDHT(h, server, member, func() []peer.AddrInfo { return nil }, keys)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return h, d
}

func TestOneServerIsEnoughOfADHT(t *testing.T) {
	relay, _ := newDHT(t, true, everyone, oneKey)
	nas, nasDHT := newDHT(t, false, everyone, oneKey)
	laptop, laptopDHT := newDHT(t, false, everyone, oneKey)
	serve(t, newFinder(t, nas, "/ip4/192.0.2.1/tcp/4001", nil, func(c *Config) { c.DHT = nasDHT }))
	f := newFinder(t, laptop, "/ip4/192.0.2.2/tcp/4001", nil, func(c *Config) { c.DHT = laptopDHT })
	if got := find(t, f, nas.ID()); len(got) != 0 { // and returns at once, without a server
		t.Errorf("found %v", got)
	}
	connect(t, nas, relay)
	connect(t, laptop, relay)
	eventually(t, "found", func() bool { return find(t, f, nas.ID())["/ip4/192.0.2.1/tcp/4001"] == 1 })
}

func TestServerItselfIsFoundInItsDHT(t *testing.T) {
	relay, relayDHT := newDHT(t, true, everyone, oneKey)
	laptop, laptopDHT := newDHT(t, false, everyone, oneKey)
	serve(t, newFinder(t, relay, "/ip4/192.0.2.1/tcp/4001", nil, func(c *Config) { c.DHT = relayDHT }))
	f := newFinder(t, laptop, "/ip4/192.0.2.2/tcp/4001", nil, func(c *Config) { c.DHT = laptopDHT })
	connect(t, laptop, relay)
	eventually(t, "found", func() bool { return find(t, f, relay.ID())["/ip4/192.0.2.1/tcp/4001"] == 1 })
}

func TestStrangersGetIntoNoRoutingTable(t *testing.T) {
	stranger, _ := newDHT(t, true, everyone, oneKey)
	friend, _ := newDHT(t, true, everyone, oneKey)
	h, d := newDHT(t, true, func(p peer.ID) bool { return p != stranger.ID() }, oneKey)
	connect(t, h, stranger)
	connect(t, h, friend)
	eventually(t, "the friend is in", func() bool { return d.RoutingTable().Find(friend.ID()) != "" })
	if d.RoutingTable().Find(stranger.ID()) != "" {
		t.Error("the stranger is in")
	}
}

func TestDHTTakesNoRecordInAnothersPlace(t *testing.T) {
	v := dhtValidator{member: everyone, keys: oneKey}
	key, mallory := newKey(t), newKey(t)
	victim, _ := peer.IDFromPrivateKey(key)
	evil, _ := peer.IDFromPrivateKey(mallory)
	ns := Namespace(oneKey()[0], victim)
	rec := addressRecord{Network: "net", Namespace: ns}
	if err := v.Validate(dhtKey(ns), mustSeal(t, key, rec)); err != nil {
		t.Errorf("the owner's record: %v", err)
	}
	expired := rec
	expired.Issued, expired.Expires = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
	elsewhere := addressRecord{Network: "net", Namespace: "made up"}
	for name, try := range map[string]struct {
		ns    string
		value []byte
	}{
		"of another signer":         {ns, mustSeal(t, mallory, rec)},
		"expired":                   {ns, mustSeal(t, key, expired)},
		"under another namespace":   {Namespace(oneKey()[0], evil), mustSeal(t, key, rec)},
		"under a made-up namespace": {"made up", mustSeal(t, key, elsewhere)},
		"not a record":              {ns, []byte("nonsense")},
	} {
		if v.Validate(dhtKey(try.ns), try.value) == nil {
			t.Errorf("a record %s was taken", name)
		}
	}
	v.member = func(p peer.ID) bool { return p != victim }
	if v.Validate(dhtKey(ns), mustSeal(t, key, rec)) == nil {
		t.Error("a stranger's record was taken")
	}
}

func TestDHTPrefersTheRecordIssuedLast(t *testing.T) {
	key := newKey(t)
	now := time.Now()
	older := mustSeal(t, key, addressRecord{Namespace: "ns", Issued: now, Expires: now.Add(2 * time.Hour)})
	newer := mustSeal(t, key, addressRecord{Namespace: "ns", Issued: now.Add(time.Second), Expires: now.Add(time.Hour)})
	var v dhtValidator
	if i, err := v.Select("", [][]byte{[]byte("nonsense"), older, newer, older}); i != 2 || err != nil {
		t.Errorf("chose %d, %v", i, err)
	}
	if _, err := v.Select("", [][]byte{[]byte("nonsense")}); err == nil {
		t.Error("chose nonsense")
	}
}
