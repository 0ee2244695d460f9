//go:build linux

package itest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// datagrams is a UDP echo server on the NAS's host, exposed as "udp", and what it has seen.
type datagrams struct {
	mu    sync.Mutex
	count map[uint32]int  // datagrams by number
	from  map[string]bool // sources
}

func (w *world) exposeUDP() *datagrams {
	w.t.Helper()
	conn, err := w.nas.Host.ListenUDP("127.0.0.1:9100")
	if err != nil {
		w.t.Fatal(err)
	}
	s := &datagrams{count: map[uint32]int{}, from: map[string]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() { // ends with the socket
		b := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			if n >= 4 {
				s.count[binary.BigEndian.Uint32(b)]++
			}
			s.from[from.String()] = true
			s.mu.Unlock()
			conn.WriteTo(b[:n], from)
		}
	})
	w.t.Cleanup(func() { conn.Close(); serving.Wait() })
	w.nas.Start("expose", "9100/udp", "--name", "udp").Wait("exposed")
	return s
}

// connectUDP has the laptop connect "udp"; the client is a program there.
func (w *world) connectUDP(flags ...string) (*fwdtest.Process, net.Conn) {
	w.t.Helper()
	p := w.laptop.Start(append([]string{"connect", "udp", "127.0.0.1:5100"}, flags...)...)
	local, ok := strings.CutSuffix(p.Wait("listening").Local, "/udp")
	if !ok {
		w.t.Fatal("the forward is not for UDP")
	}
	c, err := w.laptop.Host.Dial(context.Background(), "udp", local)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return p, c
}

// A stream of datagrams is what a program saw of what it sent.
type stream struct {
	sent, back, doubled int
	gap                 time.Duration // the longest without an answer
	sizes               int           // of those that came back, how many had not the size they were sent with
}

// flood sends a numbered datagram every 5 ms, of sizes from size(i), until done is closed.
func flood(c net.Conn, size func(i int) int, done <-chan struct{}) stream {
	var s stream
	var mu sync.Mutex
	seen := map[uint32]int{}
	last := time.Now()
	c.SetReadDeadline(time.Time{})
	var reading sync.WaitGroup
	reading.Go(func() { // ends with the deadline
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			i := binary.BigEndian.Uint32(b)
			mu.Lock()
			seen[i]++
			s.gap = max(s.gap, time.Since(last))
			last = time.Now()
			if n != max(4, size(int(i))) || !bytes.Equal(b[4:n], bytes.Repeat([]byte{byte(i)}, n-4)) {
				s.sizes++
			}
			mu.Unlock()
		}
	})
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for going := true; going; s.sent++ {
		select {
		case <-done:
			going = false
		case <-tick.C:
		}
		c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(s.sent)), bytes.Repeat([]byte{byte(s.sent)}, max(0, size(s.sent)-4))...))
	}
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	reading.Wait()
	for _, n := range seen {
		s.back++
		s.doubled += n - 1
	}
	return s
}

func sizes(i int) int { return i * 37 % 3000 } // also such as fit no QUIC datagram

// whileFlooding calls during while datagrams flow, and returns what the program saw.
func (w *world) whileFlooding(c net.Conn, during func()) stream {
	done := make(chan struct{})
	result := make(chan stream, 1)
	go func() { result <- flood(c, sizes, done) }()
	during()
	time.Sleep(3 * time.Second) // the last part of the stream shows that it goes on
	close(done)
	s := <-result
	w.t.Logf("%d sent, %d back, %d doubled, longest gap %v", s.sent, s.back, s.doubled, s.gap)
	return s
}

// lossless floods again until share percent came back and good is content, too: fwd drops what has waited for 200 ms, so
// one moment in which the machine stands still may cost more. None of the floods has doubled or changed datagrams.
func (w *world) lossless(share int, good func(stream) bool, window func(try int) stream) {
	w.t.Helper()
	for deadline, try := time.Now().Add(fwdtest.Limit), 0; ; try++ {
		s := window(try)
		if s.doubled+s.sizes > 0 {
			w.t.Fatalf("%+v", s)
		}
		if s.back >= s.sent*share/100 && good(s) {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("after %v still %+v, by %+v", fwdtest.Limit, s, w.carried())
		}
	}
}

// answered waits for the first answer.
func answered(t *testing.T, c net.Conn) {
	t.Helper()
	b := make([]byte, 10)
	for end := time.Now().Add(fwdtest.Limit); ; {
		c.Write([]byte{0xff, 0xff, 0xff, 0xff})
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(b); err == nil {
			c.SetReadDeadline(time.Time{})
			return
		}
		if time.Now().After(end) {
			t.Fatal("no answer to any datagram")
		}
	}
}

func TestUDPMovesFromTheRelayToTheDirectPathAndBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted)
	server := w.exposeUDP()
	sever := func() (mend func()) { return w.lab.Sever(w.homes[0].WAN(), w.homes[1].WAN()) }
	mend := sever()
	_, c := w.connectUDP()
	// No datagram is on its way twice; few are lost while the old path still works.
	w.lossless(95, func(s stream) bool { return s.gap <= 3*time.Second }, func(try int) stream {
		if try > 0 {
			mend = sever()
		}
		w.laptop.WaitPath("udp", "relay")
		answered(t, c)
		return w.whileFlooding(c, func() {
			time.Sleep(time.Second)
			mend()
			w.laptop.WaitPath("udp", "direct")
		})
	})
	direct := func(stream) bool { got := w.carried(); return got.relayed <= got.udp/4 }
	w.lossless(99, direct, func(int) stream {
		w.lab.ForgetFlows()
		return w.whileFlooding(c, func() { time.Sleep(2 * time.Second) })
	})
	down := w.whileFlooding(c, func() {
		time.Sleep(time.Second)
		sever()
		time.Sleep(10 * time.Second)
	})
	if down.doubled+down.sizes > 0 || down.gap > stallLimit || down.back < down.sent/4 {
		t.Errorf("back to the relay: %+v", down)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if len(server.from) != 1 {
		t.Errorf("the server saw %d sources: %v; one flow has one", len(server.from), server.from)
	}
	if s := w.laptop.Status(); len(s.Forwards) != 1 || s.Forwards[0].Sessions != 1 || s.Forwards[0].Local != "127.0.0.1:5100/udp" {
		t.Errorf("status: %+v", s.Forwards)
	}
}

func TestUDPOverTheRelayAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.UDPBlocked, lab.UDPBlocked)
	w.exposeUDP()
	_, c := w.connectUDP("--path", "relay")
	answered(t, c)
	w.lossless(99, func(stream) bool { return true }, func(int) stream {
		return w.whileFlooding(c, func() { time.Sleep(3 * time.Second) })
	})
}

func TestUDPSurvivesAChangeOfNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted)
	server := w.exposeUDP()
	connect, c := w.connectUDP()
	answered(t, c)
	pathIs(connect, "direct")
	away := w.lab.Home("away", lab.PortRange, slow())
	got := w.whileFlooding(c, func() {
		time.Sleep(time.Second)
		w.laptop.Host.MoveTo(away)
		time.Sleep(10 * time.Second)
	})
	if got.doubled+got.sizes > 0 || got.gap > stallLimit || got.back < got.sent/4 {
		t.Errorf("%+v", got)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if len(server.from) != 1 {
		t.Errorf("the server saw %d sources: %v", len(server.from), server.from)
	}
}

// How soon, and by whose word, is internal/node's to show; here a machine that is busy may take longer than the second
// that is promised.
func TestUDPOfARevokedMachineEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted)
	w.exposeUDP()
	connect, c := w.connectUDP()
	answered(t, c)
	pathIs(connect, "direct")
	const silence = 3 * time.Second
	var last atomic.Int64 // answer, since began
	began := time.Now()
	done := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		b := make([]byte, 100)
		for {
			select {
			case <-done:
				return
			default:
			}
			c.Write([]byte("xxxx"))
			c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			if _, err := c.Read(b); err == nil {
				last.Store(int64(time.Since(began)))
			}
		}
	})
	time.Sleep(time.Second)
	w.relay.Must("revoke", "laptop")
	revoked := time.Since(began)
	for time.Since(began)-max(revoked, time.Duration(last.Load())) < silence {
		if time.Since(began)-revoked > stallLimit {
			t.Errorf("answers come %v after the revocation", stallLimit)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	close(done)
	asking.Wait()
	t.Logf("the last answer came %v after the revocation", time.Duration(last.Load())-revoked)
}

func TestDNSByUDPAndTCPUnderOneName(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted)
	serveDNS(t, w.nas.Host)
	w.nas.Start("expose", "53", "--name", "dns").Wait("exposed")
	w.nas.Start("expose", "53/udp", "--name", "dns").Wait("exposed")
	p := w.laptop.Start("connect", "dns", "127.0.0.1:5300")
	p.WaitFor("listening", func(e fwdtest.Event) bool { return e.Local == "127.0.0.1:5300" })
	p.WaitFor("listening", func(e fwdtest.Event) bool { return e.Local == "127.0.0.1:5300/udp" })

	once := func(network, name string, edns uint16) (*dns.Msg, error) {
		q := new(dns.Msg).SetQuestion(name, dns.TypeTXT)
		if edns > 0 {
			q.SetEdns0(edns, false)
		}
		c, err := w.laptop.Host.Dial(context.Background(), network, "127.0.0.1:5300")
		if err != nil {
			return nil, err
		}
		defer c.Close()
		client := &dns.Client{Net: network, Timeout: 5 * time.Second}
		answer, _, err := client.ExchangeWithConn(q, &dns.Conn{Conn: c, UDPSize: max(edns, 512)})
		return answer, err
	}
	repeats := 0
	ask := func(network, name string, edns uint16) (*dns.Msg, error) { // as resolvers do: what is lost, by a change of path say, is asked again
		for {
			a, err := once(network, name, edns)
			var late net.Error
			if !errors.As(err, &late) || !late.Timeout() || repeats == 5 {
				return a, err
			}
			repeats++
		}
	}
	for i := range 200 { // each from a port of its own
		name := fmt.Sprintf("n%d.example.", i)
		a, err := ask("udp", name, 0)
		if err != nil || len(a.Answer) != 1 || !strings.Contains(a.Answer[0].String(), name) {
			t.Fatalf("%s: %v, %v", name, a, err)
		}
	}
	if a, err := ask("udp", "big.example.", 0); err != nil || !a.Truncated {
		t.Errorf("a big answer by UDP without EDNS: %v, %v", a, err)
	}
	for _, way := range []struct {
		network string
		edns    uint16
	}{{"udp", 4096}, {"tcp", 0}} {
		if a, err := ask(way.network, "big.example.", way.edns); err != nil || a.Truncated || len(a.Answer) != 10 {
			t.Errorf("a big answer by %s: %v, %v", way.network, a, err)
		}
	}
	t.Logf("%d questions had to be asked again", repeats)
}

// serveDNS answers on port 53 of the host's loopback, by UDP and TCP.
func serveDNS(t *testing.T, host *lab.Host) {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		n := 1
		if name == "big.example." {
			n = 10
		}
		for range n {
			a.Answer = append(a.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60},
				Txt: []string{strings.Repeat("x", 200)}})
		}
		if w.LocalAddr().Network() == "udp" {
			size := dns.MinMsgSize
			if e := q.IsEdns0(); e != nil {
				size = int(e.UDPSize())
			}
			a.Truncate(size)
		}
		w.WriteMsg(a)
	})
	packets, err := host.ListenUDP("127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := host.Listen("tcp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: listener, Handler: handler}} {
		var serving sync.WaitGroup
		serving.Go(func() { s.ActivateAndServe() })
		t.Cleanup(func() { s.Shutdown(); serving.Wait() })
	}
}
