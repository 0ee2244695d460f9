package relaynode

import (
	"bufio"
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// parsedRecords is a records answer as a client reads it.
type parsedRecords struct {
	status  status
	records [][]byte
	cookie  []byte
}

func parseRecordsAnswer(t testing.TB, b []byte) parsedRecords {
	t.Helper()
	in := parser{rest: b}
	if in.byte() != typeRecords {
		t.Fatalf("not a records answer: %v", b)
	}
	a := parsedRecords{status: status(in.byte())}
	for range in.uvarint() {
		a.records = append(a.records, in.bytes(maxRecord))
	}
	a.cookie = in.bytes(maxCookie)
	if err := in.end(); err != nil {
		t.Fatal(err)
	}
	return a
}

func discover(t testing.TB, l *lab, h host.Host, q request) parsedRecords {
	t.Helper()
	b, err := ask(l, h, q)
	if err != nil {
		t.Fatal(err)
	}
	return parseRecordsAnswer(t, b[0])
}

func TestDiscoverGivesWhatWasRegisteredByteForByte(t *testing.T) {
	l := newLab(t)
	nas, laptop := l.join(), l.join()
	rec := sealed(t, nas.Peerstore().PrivKey(nas.ID()), nil)
	if _, err := ask(l, nas, request{Record: rec}); err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string]request{
		"anyone":    {Namespace: "ns"},
		"that peer": {Namespace: "ns", Peer: nas.ID()},
	} {
		if a := discover(t, l, laptop, q); len(a.records) != 1 || !bytes.Equal(a.records[0], rec) {
			t.Errorf("%s: %d records", name, len(a.records))
		}
	}
	for name, q := range map[string]request{
		"another peer":      {Namespace: "ns", Peer: laptop.ID()},
		"another namespace": {Namespace: "ns2"},
	} {
		if a := discover(t, l, laptop, q); a.status != statusOK || len(a.records) != 0 {
			t.Errorf("%s: status %d, %d records", name, a.status, len(a.records))
		}
	}
}

func TestCookieGivesOnlyWhatIsNew(t *testing.T) {
	l := newLab(t)
	a, b, laptop := l.join(), l.join(), l.join()
	mustRegister(l, a, "ns")
	first := discover(t, l, laptop, request{Namespace: "ns"})
	if again := discover(t, l, laptop, request{Namespace: "ns", Cookie: first.cookie}); len(again.records) != 0 {
		t.Errorf("%d records that were seen already", len(again.records))
	}
	mustRegister(l, b, "ns")
	if fresh := discover(t, l, laptop, request{Namespace: "ns", Cookie: first.cookie}); len(fresh.records) != 1 {
		t.Errorf("%d records, want the new one", len(fresh.records))
	}
	if page := discover(t, l, laptop, request{Namespace: "ns", Limit: 1}); len(page.records) != 1 {
		t.Errorf("%d records, want 1", len(page.records))
	}
}

func TestStuffedCookiesAreRefusedAndCostNoMemory(t *testing.T) {
	l := newLab(t)
	a, b := l.join(), l.join()
	mustRegister(l, a, "ns")
	good := discover(t, l, a, request{Namespace: "ns"}).cookie
	forged := bytes.Clone(good)
	forged[positionSize-1]++
	for name, try := range map[string]struct {
		from host.Host
		q    request
	}{
		"forged":              {a, request{Namespace: "ns", Cookie: forged}},
		"of another peer":     {b, request{Namespace: "ns", Cookie: good}},
		"of another question": {a, request{Namespace: "ns2", Cookie: good}},
		"short":               {a, request{Namespace: "ns", Cookie: good[:5]}},
		"long":                {a, request{Namespace: "ns", Cookie: make([]byte, maxCookie)}},
	} {
		if got := discover(t, l, try.from, try.q); got.status != statusBadCookie || len(got.records) != 0 {
			t.Errorf("%s: status %d, %d records", name, got.status, len(got.records))
		}
	}
}

func TestBadRecordsAreRefused(t *testing.T) {
	l := newLab(t)
	h, other := l.join(), newKey(t)
	mine := h.Peerstore().PrivKey(h.ID())
	at := func(d time.Duration) uint64 { return uint64(time.Now().Add(d).UnixMilli()) }
	flipped := sealed(t, mine, nil)
	flipped[len(flipped)-1] ^= 1
	for name, try := range map[string]struct {
		record []byte
		want   status
	}{
		"another peer's":       {sealed(t, other, nil), statusNotAllowed},
		"of another network":   {sealed(t, mine, func(r *addressRecord) { r.Network = "other" }), statusBadRecord},
		"expired, replayed":    {sealed(t, mine, func(r *addressRecord) { r.Issued, r.Expires = at(-2*time.Hour), at(-time.Second) }), statusExpired},
		"living too long":      {sealed(t, mine, func(r *addressRecord) { r.Expires = at(maxTTL + clockSkew + time.Minute) }), statusExpired},
		"with no namespace":    {sealed(t, mine, func(r *addressRecord) { r.Namespace = "" }), statusBadRecord},
		"with a bad address":   {sealed(t, mine, func(r *addressRecord) { r.Addrs = [][]byte{{0xff}} }), statusBadRecord},
		"with a bad signature": {flipped, statusBadRecord},
		"not a record":         {[]byte("nonsense"), statusBadRecord},
	} {
		b, err := ask(l, h, request{Record: try.record})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := registeredAnswer(try.want, 0); !bytes.Equal(b[0], want) {
			t.Errorf("%s: answered %v, want %v", name, b[0], want)
		}
	}
	if s := l.relay.Stats(); s.Records != 0 {
		t.Errorf("%d records were kept", s.Records)
	}
}

// A machine may leave one network for another while it relays.
func TestThePointTakesTheRecordsOfTheNetworkThatItIsInNow(t *testing.T) {
	now := "before"
	l := newLab(t, func(c *Config) { c.Network = func() string { return now } })
	h := l.join()
	mine := sealed(t, h.Peerstore().PrivKey(h.ID()), nil)
	if s, _ := l.relay.point.register(h.ID(), mine); s != statusBadRecord {
		t.Errorf("before: status %d", s)
	}
	now = testNetwork
	if s, _ := l.relay.point.register(h.ID(), mine); s != statusOK {
		t.Errorf("once in it: status %d", s)
	}
}

func TestOversizedRequestsEndTheStream(t *testing.T) {
	l := newLab(t)
	h := l.join()
	if _, err := ask(l, h, request{Record: make([]byte, 1<<20)}); err == nil {
		t.Error("a record of 1 MiB was answered")
	}
	if _, err := ask(l, h, request{Record: make([]byte, maxRecord+1)}); err == nil {
		t.Error("a record of more than 2 KiB was answered")
	}
}

func TestExpiredRecordsAreNotGivenAndAreSwept(t *testing.T) {
	s, now := newStore(), time.Now()
	s.put("p", "ns", []byte("record"), now.Add(time.Hour), now)
	later := now.Add(time.Hour)
	if got := s.get("ns", "", 0, 10, later); len(got) != 0 {
		t.Error("an expired record was given")
	}
	s.sweep(later)
	if n, bytes := s.size(); n != 0 || bytes != 0 || len(s.namespaces)+len(s.holders)+len(s.most) != 0 {
		t.Errorf("%d records of %d bytes left", n, bytes)
	}
}

func TestPeerHasAtMost64Records(t *testing.T) {
	s, now := newStore(), time.Now()
	for i := range maxPerPeer {
		if got := s.put("p", fmt.Sprint(i), []byte("r"), now.Add(time.Hour), now); got != statusOK {
			t.Fatal(got)
		}
	}
	if got := s.put("p", "more", []byte("r"), now.Add(time.Hour), now); got != statusQuota {
		t.Errorf("the 65th: status %d", got)
	}
	if got := s.put("p", "7", []byte("r2"), now.Add(time.Hour), now); got != statusOK {
		t.Errorf("renewing one of them: status %d", got)
	}
	if got := s.put("q", "7", []byte("r"), now.Add(time.Hour), now); got != statusOK {
		t.Errorf("another peer's: status %d", got)
	}
	if got := s.put("p", "more", []byte("r"), now.Add(3*time.Hour), now.Add(2*time.Hour)); got != statusOK {
		t.Errorf("after the others have expired: status %d", got)
	}
}

func TestHundredThousandRegistrationsStayWithinTheirMemory(t *testing.T) {
	s, now := newStore(), time.Now()
	record := make([]byte, 400)
	before := heapInUse()
	for i := range 100_000 {
		// 3 000 greedy peers, then 97 000 that come once.
		p := peer.ID(fmt.Sprintf("peer-%040d", max(i%3000, i-3000)))
		s.put(p, fmt.Sprintf("namespace-%040d", i), record, now.Add(time.Hour), now)
	}
	_, counted := s.size()
	if counted > maxBytes {
		t.Errorf("counted %d bytes", counted)
	}
	if used := heapInUse() - before; used > maxBytes {
		t.Errorf("%d bytes of heap", used)
	}
	runtime.KeepAlive(s)
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestFloodOfRecordsPushesOutOnlyWhoeverUsesMore(t *testing.T) {
	s, now := newStore(), time.Now()
	put := func(p, ns string, size int) status {
		return s.put(peer.ID(p), ns, make([]byte, size), now.Add(time.Hour), now)
	}
	put("quiet", "home", 400)
	for i := range 1000 { // far more than fits
		for j := range maxPerPeer {
			put(fmt.Sprint("greedy", i), fmt.Sprint(j), maxRecord)
		}
	}
	if s.namespaces["home"]["quiet"] == nil {
		t.Error("the quiet peer was pushed out")
	}
	if got := put("newcomer", "home", 400); got != statusOK {
		t.Errorf("a newcomer is refused: status %d", got)
	}
	if _, bytes := s.size(); bytes > maxBytes {
		t.Errorf("%d bytes", bytes)
	}
}

func TestGateBoundsStreamsAndRate(t *testing.T) {
	g := newGate()
	var leaves []func()
	for range maxStreamsPerPeer {
		leave, ok := g.enter("p")
		if !ok {
			t.Fatal("refused too early")
		}
		leaves = append(leaves, leave)
	}
	if _, ok := g.enter("p"); ok {
		t.Error("one stream too many")
	}
	leave, ok := g.enter("q")
	if !ok {
		t.Error("another peer is refused")
	}
	allowed := 0
	for range 2 * requestBurst {
		if g.allow("q") {
			allowed++
		}
	}
	if allowed > requestBurst+requestRate {
		t.Errorf("%d requests in a burst", allowed)
	}
	leave()
	for _, leave := range leaves {
		leave()
	}
	g.sweep()
	if len(g.peers) != 1 || g.all != 0 { // q has to wait for its rate
		t.Errorf("%d peers remembered, %d streams", len(g.peers), g.all)
	}
}

func FuzzRequestPrintsAsItWasParsed(f *testing.F) {
	f.Add(request{Record: []byte("record")}.append(nil))
	f.Add(request{Namespace: "ns", Peer: "p", Limit: 300, Cookie: []byte("cookie")}.append(nil))
	f.Add([]byte{typeDiscover})
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := parseRequest(b)
		if err != nil {
			return
		}
		if got := q.append(nil); !bytes.Equal(got, b) {
			t.Errorf("parsed %x, printed %x", b, got)
		}
	})
}

func FuzzRecordPrintsAsItWasParsed(f *testing.F) {
	r := &addressRecord{Network: "n", Namespace: "ns", Issued: 1, Expires: 1 << 40,
		Addrs: [][]byte{ma.StringCast("/ip6/2001:db8::1/udp/4001/quic-v1").Bytes()}}
	b, _ := r.MarshalRecord()
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

func FuzzSealedRecordNeverPanics(f *testing.F) {
	key, _, _ := crypto.GenerateEd25519Key(bytes.NewReader(make([]byte, 64)))
	f.Add(sealed(f, key, nil))
	f.Fuzz(func(t *testing.T, b []byte) { openRecord(b) })
}

func FuzzCookieOfOthersIsRefused(f *testing.F) {
	c, err := newCookies()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.make("p", "ns", 7), "p", "ns")
	f.Add([]byte("12345678abcdefghabcdefgh"), "p", "n")
	f.Fuzz(func(t *testing.T, b []byte, asker, ns string) {
		position, ok := c.read(b, peer.ID(asker), ns)
		if ok && len(b) > 0 && !bytes.Equal(c.make(peer.ID(asker), ns, position), b) {
			t.Errorf("took %x", b)
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
		if got := appendBytes(nil, msg); !bytes.HasPrefix(b, got) {
			t.Errorf("read %x, printed %x", b, got)
		}
	})
}

func BenchmarkRegister(b *testing.B) {
	key := newKey(b)
	p, _ := peer.IDFromPrivateKey(key)
	pt, err := newPoint(inTestNetwork, func(peer.ID) bool { return true }, newGate(), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	rec := sealed(b, key, nil)
	for b.Loop() {
		if s, _ := pt.register(p, rec); s != statusOK {
			b.Fatal(s)
		}
	}
}
