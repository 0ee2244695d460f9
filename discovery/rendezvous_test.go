package discovery

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/discovery"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"fwd/itest/leaks"
)

func TestPeerThatAdvertisesIsFound(t *testing.T) {
	a, b := newFakePoint(t), newFakePoint(t)
	nas, nasHost := newPeer(t, "/ip4/192.0.2.1/tcp/4001", a, b)
	laptop, _ := newPeer(t, "/ip4/192.0.2.2/tcp/4001", a, b)
	ttl, err := nas.Advertise(testCtx(t), "ns", discovery.TTL(time.Hour))
	if err != nil || ttl != MaxTTL { // what the point grants
		t.Fatal(ttl, err)
	}
	ch, err := laptop.FindPeers(testCtx(t), "ns")
	if err != nil {
		t.Fatal(err)
	}
	got := collect(ch)
	if len(got) != 1 || got[0].ID != nasHost.ID() || got[0].Addrs[0].String() != "/ip4/192.0.2.1/tcp/4001" {
		t.Errorf("found %v", got)
	}
}

func TestDeadPointDoesNotKeepOthersFromAnswering(t *testing.T) {
	dead, alive := newFakePoint(t), newFakePoint(t)
	nas, nasHost := newPeer(t, "/ip4/192.0.2.1/tcp/4001", dead, alive)
	laptop, _ := newPeer(t, "/ip4/192.0.2.2/tcp/4001", dead, alive)
	if _, err := nas.Advertise(testCtx(t), "ns"); err != nil {
		t.Fatal(err)
	}
	mute := make(chan struct{})
	defer close(mute)
	dead.set(func() { dead.mute = mute })
	ctx, cancel := context.WithCancel(testCtx(t))
	ch, err := laptop.FindPeers(ctx, "ns")
	if err != nil {
		t.Fatal(err)
	}
	if info := <-ch; info.ID != nasHost.ID() {
		t.Errorf("found %v", info)
	}
	cancel()
	for range ch { // closes
	}
}

func TestAdvertiseFailsOnlyIfAllPointsDo(t *testing.T) {
	a, b := newFakePoint(t), newFakePoint(t)
	nas, _ := newPeer(t, "/ip4/192.0.2.1/tcp/4001", a, b)
	a.set(func() { a.refuse = 5 })
	b.set(func() { b.granted = time.Minute })
	if ttl, err := nas.Advertise(testCtx(t), "ns"); err != nil || ttl != time.Minute {
		t.Errorf("granted %v, %v", ttl, err)
	}
	b.set(func() { b.refuse = 4 })
	_, err := nas.Advertise(testCtx(t), "ns")
	var refusal Refusal
	if !errors.As(err, &refusal) {
		t.Errorf("error %v", err)
	}
	none, _ := newPeer(t, "/ip4/192.0.2.1/tcp/4001")
	if _, err := none.Advertise(testCtx(t), "ns"); !errors.Is(err, ErrNoPoint) {
		t.Errorf("without points: %v", err)
	}
}

func TestFindPeersTurnsThePages(t *testing.T) {
	p := newFakePoint(t)
	const n = 2*maxAnswerRecords + 3
	for i := range n {
		rec := mustSeal(t, newKey(t), addressRecord{Network: "net", Namespace: "ns",
			Addrs: []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/192.0.2.%d/tcp/1", i))}})
		p.records["ns"] = append(p.records["ns"], rec)
	}
	laptop, _ := newPeer(t, "/ip4/192.0.2.2/tcp/4001", p)
	ch, err := laptop.FindPeers(testCtx(t), "ns")
	if err != nil {
		t.Fatal(err)
	}
	if got := collect(ch); len(got) != n {
		t.Errorf("%d peers of %d", len(got), n)
	}
	ch, _ = laptop.FindPeers(testCtx(t), "ns", discovery.Limit(3))
	if got := collect(ch); len(got) != 3 {
		t.Errorf("%d peers, asked for 3", len(got))
	}
}

// mustSeal signs rec, valid for an hour from now unless it says otherwise.
func mustSeal(t testing.TB, key crypto.PrivKey, rec addressRecord) []byte {
	t.Helper()
	if rec.Issued.IsZero() {
		rec.Issued = time.Now()
	}
	if rec.Expires.IsZero() {
		rec.Expires = rec.Issued.Add(time.Hour)
	}
	b, err := sealRecord(rec, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHostilePointCannotPassOffARecord(t *testing.T) {
	addrs := []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.66/tcp/1")}
	key, mallory := newKey(t), newKey(t)
	victim, _ := peer.IDFromPrivateKey(key)
	good := mustSeal(t, key, addressRecord{Network: "net", Namespace: "ns", Addrs: addrs})
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, rec := range map[string][]byte{
		"moved from another namespace": mustSeal(t, key, addressRecord{Network: "net", Namespace: "ns2", Addrs: addrs}),
		"moved from another network":   mustSeal(t, key, addressRecord{Network: "net2", Namespace: "ns", Addrs: addrs}),
		"expired and replayed": mustSeal(t, key, addressRecord{Network: "net", Namespace: "ns", Addrs: addrs,
			Issued: time.Now().Add(-time.Hour), Expires: time.Now().Add(-time.Second)}),
		"living for a year": mustSeal(t, key, addressRecord{Network: "net", Namespace: "ns", Addrs: addrs,
			Expires: time.Now().Add(365 * 24 * time.Hour)}),
		"signed by another peer":  mustSeal(t, mallory, addressRecord{Network: "net", Namespace: "ns", Addrs: addrs}),
		"with a broken signature": flipped,
		"made up":                 []byte("nonsense"),
	} {
		p := newFakePoint(t)
		p.tamper = func(string) [][]byte { return [][]byte{rec} }
		laptop, _ := newPeer(t, "/ip4/192.0.2.2/tcp/4001", p)
		var got []peer.AddrInfo
		err := laptop.discover(testCtx(t), p.host.ID(), "ns", victim, func(info peer.AddrInfo) bool {
			got = append(got, info)
			return true
		})
		if err != nil || len(got) != 0 {
			t.Errorf("%s: took %v, %v", name, got, err)
		}
	}
	p := newFakePoint(t)
	p.tamper = func(string) [][]byte { return [][]byte{flipped, good} }
	laptop, _ := newPeer(t, "/ip4/192.0.2.2/tcp/4001", p)
	taken := 0
	laptop.discover(testCtx(t), p.host.ID(), "ns", victim, func(peer.AddrInfo) bool { taken++; return true })
	if taken != 1 {
		t.Error("the good record behind a bad one was not taken")
	}
}

func TestHostilePointCannotSendMoreThanTheWireAllows(t *testing.T) {
	for name, answer := range map[string][]byte{
		"a huge message":   appendBytes(nil, make([]byte, maxAnswer+1)),
		"too many records": appendBytes(nil, recordsAnswer{Records: make([][]byte, maxAnswerRecords+1)}.append(nil)),
		"a huge record":    appendBytes(nil, recordsAnswer{Records: [][]byte{make([]byte, maxRecord+1)}}.append(nil)),
	} {
		p := newFakePoint(t)
		p.host.SetStreamHandler(ProtocolRendezvous, func(s network.Stream) {
			s.Write(answer)
			s.Close()
		})
		laptop, h := newPeer(t, "/ip4/192.0.2.2/tcp/4001", p)
		err := laptop.discover(testCtx(t), p.host.ID(), "ns", h.ID(), func(peer.AddrInfo) bool { return true })
		if !errors.Is(err, errMalformed) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestEndlessPagesEnd(t *testing.T) {
	p := newFakePoint(t)
	rec := mustSeal(t, newKey(t), addressRecord{Network: "net", Namespace: "ns"})
	page := recordsAnswer{Records: slices.Repeat([][]byte{rec}, maxAnswerRecords), Cookie: []byte("on")}.append(nil)
	pages := 0
	p.host.SetStreamHandler(ProtocolRendezvous, func(s network.Stream) {
		defer s.Close()
		in := bufio.NewReader(s)
		for {
			if _, err := readMsg(in, 4096); err != nil {
				return
			}
			p.set(func() { pages++ })
			s.Write(appendBytes(nil, page))
		}
	})
	laptop, _ := newPeer(t, "/ip4/192.0.2.2/tcp/4001", p)
	if err := laptop.discover(testCtx(t), p.host.ID(), "ns", "", func(peer.AddrInfo) bool { return true }); err != nil {
		t.Fatal(err)
	}
	p.set(func() {
		if pages > maxPipeline {
			t.Errorf("%d pages", pages)
		}
	})
}

func TestOurRecordsFitHoweverManyAddresses(t *testing.T) {
	var addrs []ma.Multiaddr
	for i := range 200 {
		addrs = append(addrs, ma.StringCast(fmt.Sprintf("/dns4/%s-%d.example.org/tcp/4001", string(bytes.Repeat([]byte("a"), 50)), i/2)))
	}
	b, err := sealRecord(addressRecord{Network: "net", Namespace: "ns", Issued: time.Now(),
		Expires: time.Now().Add(time.Hour), Addrs: addrs}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	rec, _, err := openRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(rec.Addrs) < 10 || len(rec.Addrs) > MaxAddrs || !rec.Addrs[0].Equal(addrs[0]) || rec.Addrs[1].Equal(addrs[0]) {
		t.Errorf("%d addresses, first %v", len(rec.Addrs), rec.Addrs[:2])
	}
}

func TestIssueTimesGrowThoughTheClockStepsBack(t *testing.T) {
	r := &Rendezvous{}
	now := time.Now()
	first := r.nextIssue(now)
	if second := r.nextIssue(now.Add(-time.Minute)); !second.After(first) {
		t.Error("an issue time went back")
	}
	if far := r.nextIssue(now.Add(-24 * time.Hour)); far.After(now) {
		t.Error("after a large step our records come from the future")
	}
}

func TestFindPeersLeavesNothingBehindWhenDropped(t *testing.T) {
	p := newFakePoint(t)
	laptop, _ := newPeer(t, "/ip4/192.0.2.2/tcp/4001", p)
	nas, _ := newPeer(t, "/ip4/192.0.2.1/tcp/4001", p)
	if _, err := nas.Advertise(testCtx(t), "ns"); err != nil {
		t.Fatal(err)
	}
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(testCtx(t))
	if _, err := laptop.FindPeers(ctx, "ns"); err != nil {
		t.Fatal(err)
	}
	cancel() // without having read
	leaks.None(t, before)
}

func FuzzRecordPrintsAsItWasParsed(f *testing.F) {
	r := &addressRecord{Network: "n", Namespace: "ns", Issued: time.UnixMilli(1), Expires: time.UnixMilli(1 << 40),
		Addrs: []ma.Multiaddr{ma.StringCast("/ip6/2001:db8::1/udp/4001/quic-v1")}}
	b, err := r.MarshalRecord()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{1, 0, 1, 'x', 1, 2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r addressRecord
		if r.UnmarshalRecord(b) != nil {
			return
		}
		if got, err := r.MarshalRecord(); err != nil || !bytes.Equal(got, b) {
			t.Errorf("parsed %x, printed %x, %v", b, got, err)
		}
	})
}

func FuzzSealedRecordIsWithinBounds(f *testing.F) {
	f.Add(mustSeal(f, newKey(f), addressRecord{Network: "n", Namespace: "ns"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if rec, p, err := openRecord(b); err == nil && (len(b) > maxRecord || len(rec.Addrs) > MaxAddrs || p == "") {
			t.Errorf("took %x", b)
		}
	})
}

func FuzzRegisteredPrintsAsItWasParsed(f *testing.F) {
	f.Add(registeredAnswer{TTL: time.Hour}.append(nil))
	f.Add(registeredAnswer{Status: 4}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseRegistered(b)
		if err != nil {
			return
		}
		if got := a.append(nil); !bytes.Equal(got, b) || a.TTL > MaxTTL {
			t.Errorf("parsed %x, printed %x", b, got)
		}
	})
}

func FuzzRecordsPrintsAsItWasParsed(f *testing.F) {
	f.Add(recordsAnswer{Records: [][]byte{[]byte("a"), []byte("b")}, Cookie: []byte("c")}.append(nil))
	f.Add(recordsAnswer{Status: statusBadCookie}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseRecords(b)
		if err != nil {
			return
		}
		if got := a.append(nil); !bytes.Equal(got, b) || len(a.Records) > maxAnswerRecords {
			t.Errorf("parsed %x, printed %x", b, got)
		}
	})
}

func FuzzMessagePrintsAsItWasRead(f *testing.F) {
	f.Add(appendBytes(nil, []byte("hello")))
	f.Fuzz(func(t *testing.T, b []byte) {
		msg, err := readMsg(bufio.NewReader(bytes.NewReader(b)), 1000)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, appendBytes(nil, msg)) {
			t.Errorf("read %x of %x", msg, b)
		}
	})
}

func BenchmarkOpenRecord(b *testing.B) {
	rec := mustSeal(b, newKey(b), addressRecord{Network: "net", Namespace: "ns",
		Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/udp/4001/quic-v1")}})
	for b.Loop() {
		if _, _, err := openRecord(rec); err != nil {
			b.Fatal(err)
		}
	}
}
