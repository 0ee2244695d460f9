package discovery

import (
	"bufio"
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// patience is how long a test waits for what should take milliseconds.
const patience = 20 * time.Second

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newHost listens on loopback and is closed with the test.
func newHost(t testing.TB, listen ...string) host.Host {
	t.Helper()
	if listen == nil {
		listen = []string{"/ip4/127.0.0.1/tcp/0"}
	}
	h, err := libp2p.New(
		libp2p.Identity(newKey(t)),
		libp2p.ListenAddrStrings(listen...),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableMetrics(),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func connect(t testing.TB, a, b host.Host) {
	t.Helper()
	if err := a.Connect(testCtx(t), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

func testCtx(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// fakePoint is a rendezvous point that believes everyone and does what a test
// wants, hostile things included. It is written from docs/rendezvous.md.
type fakePoint struct {
	host host.Host

	mu         sync.Mutex
	records    map[string][][]byte // by namespace
	registered int
	forget     bool                     // keeps nothing
	refuse     status                   // answer to register
	granted    time.Duration            // answer to register
	tamper     func(ns string) [][]byte // answer to discover, if not nil
	mute       chan struct{}            // not nil: answers nothing until closed
}

func newFakePoint(t testing.TB) *fakePoint {
	p := &fakePoint{host: newHost(t), records: make(map[string][][]byte), granted: MaxTTL}
	p.serve()
	return p
}

func (p *fakePoint) serve() { p.host.SetStreamHandler(ProtocolRendezvous, p.handle) }

func (p *fakePoint) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *fakePoint) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.registered
}

func (p *fakePoint) handle(s network.Stream) {
	defer s.Close()
	in := bufio.NewReader(s)
	for {
		b, err := readMsg(in, 4096)
		if err != nil {
			return
		}
		p.mu.Lock()
		mute := p.mute
		p.mu.Unlock()
		if mute != nil {
			<-mute
			return
		}
		if _, err := s.Write(appendBytes(nil, p.answer(b))); err != nil {
			return
		}
	}
}

func (p *fakePoint) answer(b []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b[0] == typeRegister {
		p.registered++
		if p.refuse != statusOK {
			return registeredAnswer{Status: p.refuse}.append(nil)
		}
		if rec, _, err := openRecord(b[1:]); err == nil && !p.forget {
			p.records[rec.Namespace] = append(p.records[rec.Namespace], b[1:])
		}
		return registeredAnswer{TTL: p.granted}.append(nil)
	}
	in := parser{rest: b[1:]}
	ns := string(in.bytes(maxNamespace))
	in.bytes(64)
	in.uvarint()
	cookie := in.bytes(maxCookie)
	records := p.records[ns]
	if p.tamper != nil {
		records = p.tamper(ns)
	}
	from := 0
	if len(cookie) > 0 {
		from = int(cookie[0])
	}
	to := min(len(records), from+maxAnswerRecords)
	return recordsAnswer{Records: records[from:to], Cookie: []byte{byte(to)}}.append(nil)
}

// newPeer is a client of the points that announces addr.
func newPeer(t testing.TB, addr string, points ...*fakePoint) (*Rendezvous, host.Host) {
	t.Helper()
	h := newHost(t)
	r := NewRendezvous(h, func() []peer.ID {
		var ids []peer.ID
		for _, p := range points {
			ids = append(ids, p.host.ID())
		}
		return ids
	})
	r.Network = func() string { return "net" }
	r.Addrs = func() []ma.Multiaddr { return []ma.Multiaddr{ma.StringCast(addr)} }
	for _, p := range points {
		connect(t, h, p.host)
	}
	return r, h
}

func collect(ch <-chan peer.AddrInfo) []peer.AddrInfo {
	var all []peer.AddrInfo
	for info := range ch {
		all = append(all, info)
	}
	return all
}
