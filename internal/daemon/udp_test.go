package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fwd/itest/fwdtest"
)

// udpEcho answers each datagram with itself, until the test ends.
func udpEcho(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return echoDatagrams(t, c)
}

func echoDatagrams(t *testing.T, c net.PacketConn) string {
	var serving sync.WaitGroup
	t.Cleanup(func() { c.Close(); serving.Wait() })
	serving.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(b[:n], from)
		}
	})
	return c.LocalAddr().String()
}

// udpClient is a local program at a forward's end for datagrams.
func udpClient(t *testing.T, local string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", strings.TrimSuffix(local, "/udp"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// answers: does the forward carry datagrams there and back, within d? What is answered late to who asked before does not
// count.
func answers(t *testing.T, c net.Conn, d time.Duration) bool {
	t.Helper()
	word := rand.Text()
	got := make([]byte, 100)
	for end := time.Now().Add(d); time.Now().Before(end); {
		c.Write([]byte(word))
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := c.Read(got)
		for err == nil && string(got[:n]) != word {
			n, err = c.Read(got)
		}
		if err == nil {
			return true
		}
	}
	return false
}

// holdUDP is hold for a connect that listens for datagrams, if not at once: what the service is its machine says.
func (m *machine) holdUDP(request ConnectRequest) (Event, func()) {
	m.t.Helper()
	return m.holdFor(request, "listening", func(e Event) bool { return strings.HasSuffix(e.Local, "/udp") })
}

// listenings makes a connect and returns its local addresses, when there are as many as wanted.
func (m *machine) listenings(request ConnectRequest, wanted int) []string {
	m.t.Helper()
	ctx, end := context.WithCancel(context.Background())
	m.t.Cleanup(end)
	c, err := Dial(ctx, m.home)
	if err != nil {
		m.t.Fatal(err)
	}
	got := make(chan string, 8)
	go c.Call(ctx, request, func(e Event) { // ends with ctx
		if e.Event == "listening" {
			got <- e.Local
		}
	})
	var list []string
	for range wanted {
		list = append(list, await(m.t, got, "listening"))
	}
	return list
}

func TestUDPGoesThroughWholeByRelayAndDirectly(t *testing.T) {
	_, first := newRelay(t)
	nas, laptop := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"})
	e, _ := nas.hold(ExposeRequest{Target: udpEcho(t) + "/udp", Name: "echo"}, "exposed")
	if !strings.HasSuffix(e.Target, "/udp") {
		t.Errorf("exposed %q", e.Target)
	}
	for _, kind := range []string{"relay", "direct"} {
		t.Run(kind, func(t *testing.T) {
			e, end := laptop.holdUDP(ConnectRequest{Name: "echo", Local: "127.0.0.1:0", Path: kind})
			defer func() {
				end()
				eventually(t, "the forward's end", func() bool { return len(laptop.status().Forwards) == 0 }) // the next one's path is at odds with it
			}()
			c := udpClient(t, e.Local)
			if !answers(t, c, patience) {
				t.Fatal("no answer")
			}
			// Sizes from nothing to the limit; who asks again after a loss, as programs do, gets each.
			sizes := []int{0, 1, 1199, 1200, 1201, 1400, 1500, 9000, 65507}
			for i := range 3000 {
				sizes = append(sizes, i%1400)
			}
			again, deadline := 0, time.Now().Add(patience)
			got := make([]byte, 64<<10)
			for i, n := range sizes {
				sent := binary.BigEndian.AppendUint32(bytes.Repeat([]byte{byte(i)}, max(n-4, 0)), uint32(i))[:n]
				for {
					c.Write(sent)
					c.SetReadDeadline(time.Now().Add(time.Second))
					n, err := c.Read(got)
					for err == nil && !bytes.Equal(got[:n], sent) { // late answers of earlier tries
						n, err = c.Read(got)
					}
					if err == nil {
						break
					}
					if again++; time.Now().After(deadline) {
						t.Fatalf("%d bytes: %v", len(sent), err)
					}
				}
			}
			t.Logf("%d of %d were asked for again", again, len(sizes)) // 0 where the machine has nothing else to do
			s := laptop.status()
			if len(s.Sessions) != 1 || s.Sessions[0].Protocol != "udp" || s.Sessions[0].Path != kind || s.Forwards[0].Sessions != 1 {
				t.Errorf("%+v, %+v", s.Sessions, s.Forwards)
			}
			eventually(t, "the traffic's count", func() bool { return laptop.status().Traffic.Sent > 0 })
		})
	}
}

func TestOneNameStandsForTCPAndUDP(t *testing.T) {
	_, first := newRelay(t)
	nas, laptop := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "dns"}, "exposed")
	_, unexpose := nas.hold(ExposeRequest{Target: udpEcho(t) + "/udp", Name: "dns"}, "exposed")
	if _, err := nas.call(ExposeRequest{Target: "54/udp", Name: "dns"}); err == nil {
		t.Error("a second UDP target got the name too")
	}

	both := laptop.listenings(ConnectRequest{Name: "dns"}, 2)
	if both[1] != both[0]+"/udp" {
		t.Fatalf("listening on %v: not one address", both)
	}
	if !answers(t, udpClient(t, both[1]), patience) || !reverses(t, both[0]) {
		t.Error("not both answer")
	}
	if n := len(laptop.status().Forwards); n != 2 {
		t.Errorf("%d forwards", n)
	}
	only := laptop.listenings(ConnectRequest{Name: "dns", Local: "0/udp"}, 1)
	if !answers(t, udpClient(t, only[0]), patience) {
		t.Error("UDP alone does not answer")
	}

	// A deny is for both.
	c := udpClient(t, both[1])
	if !answers(t, c, patience) {
		t.Fatal("no answer")
	}
	for deny, allow := range map[string]string{"dns": "dns", "dns/udp": "dns/tcp", "dns/tcp": "dns.nas-box/udp"} {
		nas.must(AllowRequest{Service: deny, Who: "laptop", Deny: true})
		if answers(t, c, time.Second) || reverses(t, both[0]) {
			t.Errorf("who is denied %s is answered", deny)
		}
		nas.must(AllowRequest{Service: allow, Who: "laptop"})
		if !answers(t, c, patience) || !reverses(t, both[0]) {
			t.Errorf("who is allowed %s again is not answered", allow)
		}
	}

	// One ends, the other stays.
	unexpose()
	eventually(t, "UDP's end", func() bool { return !answers(t, c, 300*time.Millisecond) })
	if !reverses(t, both[0]) {
		t.Error("TCP went with UDP")
	}
	laptop.must(DisconnectRequest{Local: strings.TrimPrefix(both[0], "127.0.0.1:")})
	eventually(t, "the end of both", func() bool { return len(laptop.status().Forwards) == 1 })
}

func TestARevokedMachinesDatagramsEndAtOnce(t *testing.T) {
	relay, first := newRelay(t)
	nas, phone := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	phone.must(JoinRequest{Invite: relay.invite(), As: "phone"})
	nas.hold(ExposeRequest{Target: udpEcho(t) + "/udp", Name: "echo"}, "exposed")
	e, _ := phone.holdUDP(ConnectRequest{Name: "echo", Local: "127.0.0.1:0"})
	c := udpClient(t, e.Local)
	if !answers(t, c, patience) {
		t.Fatal("no answer")
	}
	relay.must(RevokeRequest{Peer: "phone"})
	began := time.Now()
	eventually(t, "silence", func() bool { return !answers(t, c, 150*time.Millisecond) })
	t.Logf("the last answer came within %v", time.Since(began)) // a second is promised, of a machine with nothing else to do
	eventually(t, "the flow's end at the exit", func() bool { return len(nas.status().Sessions) == 0 })
}

// reverses: does a TCP forward to reverser answer?
func reverses(t *testing.T, local string) bool {
	t.Helper()
	c, err := net.Dial("tcp", local)
	if err != nil {
		return false
	}
	defer c.Close()
	c.Write([]byte("abc"))
	c.(*net.TCPConn).CloseWrite()
	c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, 4)
	n, _ := c.Read(got)
	return string(got[:n]) == "cba"
}

func TestARangeOfUDPPortsIsOneService(t *testing.T) {
	_, first := newRelay(t)
	nas, laptop := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas"})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"})
	// Two ports in a row, at each end.
	at := fwdtest.FreePort(t)
	for port := at; port < at+2; port++ {
		c, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		echoDatagrams(t, c)
	}
	target := fmt.Sprintf("127.0.0.1:%d-%d/udp", at, at+1)
	nas.hold(ExposeRequest{Target: target, Name: "media"}, "exposed")
	port := fwdtest.FreePort(t)
	local := laptop.listenings(ConnectRequest{Name: "media", Local: fmt.Sprintf("%d-%d/udp", port, port+1)}, 1)[0]
	if want := fmt.Sprintf("127.0.0.1:%d-%d/udp", port, port+1); local != want {
		t.Errorf("listening on %s, want %s", local, want)
	}
	for i := range 2 {
		if !answers(t, udpClient(t, fmt.Sprintf("127.0.0.1:%d", port+i)), patience) {
			t.Errorf("port %d of the range does not answer", i)
		}
	}
	eventually(t, "both are counted as one service's", func() bool {
		s := nas.status()
		return s.Services[0].Sessions == 2 && s.Services[0].Target == target && len(s.Sessions) == 2 &&
			slices.Contains([]string{s.Sessions[0].Service, s.Sessions[1].Service}, "media+1")
	})
}
