package node

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/relaynode"
)

// patience is how long a condition may take to come true on a slow, shared machine.
const patience = 20 * time.Second

// mesh is a network of nodes on loopback with one list of members and relays for all.
type mesh struct {
	t      *testing.T
	mu     sync.Mutex
	member map[peer.ID]bool
	relays []peer.AddrInfo
}

func newMesh(t *testing.T) *mesh { return &mesh{t: t, member: make(map[peer.ID]bool)} }

func (m *mesh) isMember(p peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.member[p]
}

func (m *mesh) set(p peer.ID, member bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.member[p] = member
}

func (m *mesh) listed() []peer.AddrInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]peer.AddrInfo(nil), m.relays...)
}

func newKey(t *testing.T) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func loopback(ports ...int) []ma.Multiaddr {
	udp, tcp := 0, 0
	if len(ports) > 0 {
		udp, tcp = ports[0], ports[0]
	}
	return []ma.Multiaddr{
		ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", udp)),
		ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", tcp)),
	}
}

func testLog() *slog.Logger {
	if os.Getenv("FWD_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// start runs a node until the test ends or stop is called.
func (m *mesh) start(cfg Config) (n *Node, stop func()) {
	m.t.Helper()
	if cfg.Key == nil {
		cfg.Key = newKey(m.t)
	}
	if cfg.Listen == nil {
		cfg.Listen = loopback()
	}
	cfg.Member = m.isMember
	cfg.Relays = m.listed
	if cfg.Log = testLog(); cfg.Log != nil {
		id, _ := peer.IDFromPrivateKey(cfg.Key)
		cfg.Log = cfg.Log.With("self", id.ShortString())
	}
	n, err := New(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Errorf("Serve: %v", err)
		}
	})
	m.t.Cleanup(stop)
	return n, stop
}

// join starts a node that is on the roster.
func (m *mesh) join(cfg Config) *Node {
	m.t.Helper()
	n, _ := m.start(cfg)
	m.set(n.self, true)
	return n
}

// relay starts a relay that is on the roster and listed.
func (m *mesh) relay(cfg Config) (n *Node, stop func()) {
	m.t.Helper()
	cfg.Relay = true
	n, stopNode := m.start(cfg)
	m.set(n.self, true)
	r, err := relaynode.New(n.Host(), relaynode.Config{Member: m.isMember})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
		stopNode()
	})
	m.t.Cleanup(stop)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, r := range m.relays {
		if r.ID == n.self {
			m.relays[i].Addrs = n.ListenAddrs()
			return n, stop
		}
	}
	m.relays = append(m.relays, peer.AddrInfo{ID: n.self, Addrs: n.ListenAddrs()})
	return n, stop
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func reserved(n *Node, relays int) func() bool {
	return func() bool {
		count := 0
		for _, s := range n.RelayStates() {
			if s.Reserved {
				count++
			}
		}
		return count >= relays
	}
}

const echoProtocol protocol.ID = "/test/echo/1"

// serveEcho sends the first 4 bytes of each stream back.
func serveEcho(n *Node) {
	n.Host().SetStreamHandler(echoProtocol, echoHandler)
}

func echoHandler(s network.Stream) {
	defer s.Close()
	var b [4]byte
	if _, err := io.ReadFull(s, b[:]); err == nil {
		s.Write(b[:])
	}
}

// echo opens a stream by a path of that kind, and returns the connection it took if it came back.
func echo(t *testing.T, n *Node, p peer.ID, kind PathKind) (network.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := n.Open(ctx, p, echoProtocol, nil, kind)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	return s.Conn(), echoOn(s)
}

func echoOn(s network.Stream) error {
	s.SetDeadline(time.Now().Add(patience))
	if _, err := s.Write([]byte("echo")); err != nil {
		return err
	}
	var b [4]byte
	_, err := io.ReadFull(s, b[:])
	return err
}
