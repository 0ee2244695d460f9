package relaynode

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"fwd/itest/leaks"
)

// patience is how long a test waits for what should take milliseconds.
const patience = 20 * time.Second

const testNetwork = "12D3KooWNetwork"

func inTestNetwork() string { return testNetwork }

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newHost listens on loopback TCP and is closed with the test.
func newHost(t testing.TB, key crypto.PrivKey) host.Host {
	t.Helper()
	h, err := libp2p.New(
		libp2p.Identity(key),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableMetrics(),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// roster is a set of members that tests change.
type roster struct {
	mu      sync.Mutex
	members map[peer.ID]bool
}

func (r *roster) has(p peer.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.members[p]
}

func (r *roster) set(p peer.ID, member bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members[p] = member
}

// lab is a relay at work and the roster it goes by.
type lab struct {
	t      testing.TB
	relay  *Relay
	host   host.Host
	roster *roster
}

func newLab(t testing.TB, change ...func(*Config)) *lab {
	t.Helper()
	l := &lab{t: t, host: newHost(t, newKey(t)), roster: &roster{members: make(map[peer.ID]bool)}}
	cfg := Config{Member: l.roster.has, Network: inTestNetwork}
	for _, c := range change {
		c(&cfg)
	}
	r, err := New(l.host, cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.relay = r
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Serve(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("Serve did not return")
		}
	})
	eventually(t, "the relay serves", func() bool {
		return strings.Contains(fmt.Sprint(l.host.Mux().Protocols()), string(ProtocolReflect))
	})
	return l
}

// join makes a peer that is a member and connected to the relay.
func (l *lab) join() host.Host {
	l.t.Helper()
	h := l.connect(newKey(l.t))
	return h
}

func (l *lab) connect(key crypto.PrivKey) host.Host {
	l.t.Helper()
	h := newHost(l.t, key)
	l.roster.set(h.ID(), true)
	if err := h.Connect(l.ctx(), peer.AddrInfo{ID: l.host.ID(), Addrs: l.host.Addrs()}); err != nil {
		l.t.Fatal(err)
	}
	return h
}

func (l *lab) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	l.t.Cleanup(cancel)
	return ctx
}

func (l *lab) info() peer.AddrInfo { return peer.AddrInfo{ID: l.host.ID(), Addrs: l.host.Addrs()} }

// circuit connects a to b through the relay.
func (l *lab) circuit(a, b host.Host) error {
	addr := l.host.Addrs()[0].Encapsulate(ma.StringCast(fmt.Sprintf("/p2p/%s/p2p-circuit", l.host.ID())))
	return a.Connect(l.ctx(), peer.AddrInfo{ID: b.ID(), Addrs: []ma.Multiaddr{addr}})
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

const echo = "/test/echo"

// exposed reserves at the relay and echoes.
func (l *lab) exposed() host.Host {
	l.t.Helper()
	h := l.join()
	h.SetStreamHandler(echo, func(s network.Stream) {
		io.Copy(s, s)
		s.Close()
	})
	if _, err := client.Reserve(l.ctx(), h, l.info()); err != nil {
		l.t.Fatal(err)
	}
	return h
}

// sendEcho sends n bytes to b and says whether they came back.
func sendEcho(ctx context.Context, a host.Host, b peer.ID, n int) error {
	s, err := a.NewStream(ctx, b, echo)
	if err != nil {
		return err
	}
	defer s.Reset()
	data := make([]byte, n)
	rand.Read(data)
	go func() {
		s.Write(data)
		s.CloseWrite()
	}()
	s.SetReadDeadline(time.Now().Add(patience))
	back, err := io.ReadAll(s)
	if err == nil && !bytes.Equal(back, data) {
		err = fmt.Errorf("%d bytes came back of %d", len(back), n)
	}
	return err
}

func TestMembersReachEachOtherThroughTheRelayUnlimited(t *testing.T) {
	l := newLab(t)
	nas, laptop := l.exposed(), l.join()
	if err := l.circuit(laptop, nas); err != nil {
		t.Fatal(err)
	}
	for _, c := range laptop.Network().ConnsToPeer(nas.ID()) {
		if c.Stat().Limited {
			t.Error("the circuit is limited")
		}
	}
	const n = 1 << 20 // the stock limit is 128 KiB
	if err := sendEcho(l.ctx(), laptop, nas.ID(), n); err != nil {
		t.Fatal(err)
	}
	s := l.relay.Stats()
	if s.Reservations != 1 || s.Circuits != 1 || s.Bytes < 2*n {
		t.Errorf("counted %+v", s)
	}
	if u := l.relay.Usage(); u.Bytes < 2*n || u.Month == "" {
		t.Errorf("used %+v", u)
	}
	laptop.Close()
	eventually(t, "the circuit is counted out", func() bool { return l.relay.Stats().Circuits == 0 })
}

func TestStrangersGetNoReservationAndNoCircuit(t *testing.T) {
	l := newLab(t)
	nas, stranger := l.exposed(), l.join()
	l.roster.set(stranger.ID(), false)
	if _, err := client.Reserve(l.ctx(), stranger, l.info()); err == nil {
		t.Error("a stranger got a reservation")
	}
	if err := l.circuit(stranger, nas); err == nil {
		t.Error("a stranger got a circuit to a member")
	}
	l.roster.set(stranger.ID(), true)
	if _, err := client.Reserve(l.ctx(), stranger, l.info()); err != nil {
		t.Fatal(err)
	}
	l.roster.set(stranger.ID(), false)
	laptop := l.join()
	if err := l.circuit(laptop, stranger); err == nil {
		t.Error("a member got a circuit to a stranger")
	}
}

func TestStrangersGetNoAnswerAtThePoint(t *testing.T) {
	l := newLab(t)
	stranger := l.join()
	l.roster.set(stranger.ID(), false)
	if _, err := ask(l, stranger, request{Namespace: "x"}); err == nil {
		t.Error("discover answered a stranger")
	}
	if _, err := askReflect(l, stranger); err == nil {
		t.Error("reflect answered a stranger")
	}
}

func TestWhoeverLeavesTheRosterIsCutAtOnce(t *testing.T) {
	l := newLab(t)
	nas, laptop, bystander := l.exposed(), l.join(), l.join()
	if err := l.circuit(laptop, nas); err != nil {
		t.Fatal(err)
	}
	s, err := laptop.NewStream(l.ctx(), nas.ID(), echo)
	if err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("x"))
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	mustRegister(l, nas, "ns")

	l.roster.set(nas.ID(), false)
	before := time.Now()
	l.relay.Refresh()
	s.SetReadDeadline(time.Now().Add(patience))
	_, err = s.Read(make([]byte, 1))
	if took := time.Since(before); err == nil || took >= patience { // nothing else would cut it by then
		t.Errorf("the circuit still carries after %v: %v", took, err)
	} else {
		t.Logf("cut after %v", took)
	}
	eventually(t, "reservation, circuit and record are gone", func() bool {
		s := l.relay.Stats()
		return s.Reservations == 0 && s.Circuits == 0 && s.Records == 0
	})
	if l.host.Network().Connectedness(laptop.ID()) != network.Connected ||
		l.host.Network().Connectedness(bystander.ID()) != network.Connected {
		t.Error("a member was cut as well")
	}
}

func TestRefreshLeavesAJoiningPeerAlone(t *testing.T) {
	l := newLab(t)
	joining := l.join()
	l.roster.set(joining.ID(), false)
	l.relay.Refresh()
	if l.host.Network().Connectedness(joining.ID()) != network.Connected {
		t.Error("cut")
	}
}

func TestServeCutsCircuitsAndLeavesNothingBehind(t *testing.T) {
	defer leaks.None(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.Limits = Limits{PerPeer: minRate, Total: minRate} })
		nas, laptop := l.exposed(), l.join()
		if err := l.circuit(laptop, nas); err != nil {
			t.Fatal(err)
		}
		go sendEcho(context.Background(), laptop, nas.ID(), 1<<20) // is still being paced when Serve ends
		eventually(t, "bytes flow", func() bool { return l.relay.Stats().Bytes > copyBuffer })
	})
}

func TestReflectSaysWhereTheConnectionComesFrom(t *testing.T) {
	l := newLab(t)
	h := l.join()
	got, err := askReflect(l, h)
	if err != nil {
		t.Fatal(err)
	}
	want := h.Network().ConnsToPeer(l.host.ID())[0].LocalMultiaddr()
	if !got.Equal(want) {
		t.Errorf("reflected %s, want %s", got, want)
	}
	if _, ok := reflection(ma.StringCast("/ip4/1.2.3.4/tcp/1/p2p/" + h.ID().String() + "/p2p-circuit")); ok {
		t.Error("a circuit was reflected")
	}
}

func TestOlderConnectionIsClosedOnlyWhenSilent(t *testing.T) {
	l := newLab(t)
	l.relay.older.silence = 5 * time.Second // those that live may take as long on a busy machine; libp2p closes a dead one after 30
	key := newKey(t)
	wire := newCutWire(t, l.host.Addrs()[0])
	first := newHost(t, key)
	l.roster.set(first.ID(), true)
	if err := first.Connect(l.ctx(), peer.AddrInfo{ID: l.host.ID(), Addrs: []ma.Multiaddr{wire.addr}}); err != nil {
		t.Fatal(err)
	}
	l.connect(key)
	l.connect(key)
	conns := func() int { return len(l.host.Network().ConnsToPeer(first.ID())) }
	eventually(t, "three connections", func() bool { return conns() == 3 })

	// All answer: after another look none is missing.
	l.relay.older.look(l.ctx(), l.host.Network().ConnsToPeer(first.ID()))
	if n := conns(); n != 3 {
		t.Fatalf("%d connections left of 3 that answer", n)
	}
	wire.cut()
	fourth := time.Now()
	l.connect(key)
	eventually(t, "the dead connection is closed", func() bool { return conns() == 3 })
	t.Logf("closed after %v", time.Since(fourth))
	for _, c := range l.host.Network().ConnsToPeer(first.ID()) {
		if c.RemoteMultiaddr().Equal(wire.from()) {
			t.Error("a live connection was closed instead of the dead one")
		}
	}
}

// cutWire forwards one TCP connection until it is cut: then nothing passes, and
// neither end is told.
type cutWire struct {
	addr ma.Multiaddr
	out  net.Conn
	mu   sync.Mutex
	dead bool
}

func newCutWire(t testing.TB, to ma.Multiaddr) *cutWire {
	t.Helper()
	port, _ := to.ValueForProtocol(ma.P_TCP)
	out, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	in, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &cutWire{out: out, addr: ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", in.Addr().(*net.TCPAddr).Port))}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := in.Accept()
		if err != nil {
			return
		}
		wg.Go(func() { w.pass(c, out) })
		w.pass(out, c)
		c.Close()
	})
	t.Cleanup(func() {
		in.Close()
		out.Close()
		wg.Wait()
	})
	return w
}

func (w *cutWire) pass(dst, src net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		w.mu.Lock()
		dead := w.dead
		w.mu.Unlock()
		if err != nil {
			if !dead {
				dst.Close()
			}
			return
		}
		if !dead {
			dst.Write(buf[:n])
		}
	}
}

func (w *cutWire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = true
}

func (w *cutWire) from() ma.Multiaddr {
	return ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", w.out.LocalAddr().(*net.TCPAddr).Port))
}

// ask sends requests on one stream and returns the raw answers.
func ask(l *lab, h host.Host, requests ...request) ([][]byte, error) {
	s, err := h.NewStream(l.ctx(), l.host.ID(), ProtocolRendezvous)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	var out []byte
	for _, q := range requests {
		out = appendBytes(out, q.append(nil))
	}
	if _, err := s.Write(out); err != nil {
		return nil, err
	}
	s.SetReadDeadline(time.Now().Add(patience))
	in := bufio.NewReader(s)
	var answers [][]byte
	for range requests {
		b, err := readMsg(in, 64<<10)
		if err != nil {
			return answers, err
		}
		answers = append(answers, b)
	}
	return answers, nil
}

func askReflect(l *lab, h host.Host) (ma.Multiaddr, error) {
	s, err := h.NewStream(l.ctx(), l.host.ID(), ProtocolReflect)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	s.SetReadDeadline(time.Now().Add(patience))
	b, err := readMsg(bufio.NewReader(s), maxAddr)
	if err != nil {
		return nil, err
	}
	return ma.NewMultiaddrBytes(b)
}

// sealed makes a record as a client would.
func sealed(t testing.TB, key crypto.PrivKey, change func(*addressRecord)) []byte {
	t.Helper()
	now := time.Now()
	r := &addressRecord{
		Network: testNetwork, Namespace: "ns",
		Issued: uint64(now.UnixMilli()), Expires: uint64(now.Add(time.Hour).UnixMilli()),
		Addrs: [][]byte{ma.StringCast("/ip4/192.0.2.1/tcp/4001").Bytes()},
	}
	if change != nil {
		change(r)
	}
	env, err := record.Seal(r, key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := env.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustRegister(l *lab, h host.Host, ns string) {
	l.t.Helper()
	key := h.Peerstore().PrivKey(h.ID())
	b, err := ask(l, h, request{Record: sealed(l.t, key, func(r *addressRecord) { r.Namespace = ns })})
	if err != nil {
		l.t.Fatal(err)
	}
	if len(b[0]) < 2 || b[0][0] != typeRegistered || status(b[0][1]) != statusOK {
		l.t.Fatalf("register answered %v", b[0])
	}
}
