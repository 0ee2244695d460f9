package daemon

import (
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/net/proxy"

	"fwd/itest/fwdtest"
)

// bySOCKS connects through the entry at proxyAddr.
func bySOCKS(t *testing.T, proxyAddr, target string) (net.Conn, error) {
	t.Helper()
	dialer, err := proxy.SOCKS5("tcp", proxyAddr, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialer.Dial("tcp", target)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// greeter greets with word and ends its direction.
func greeter(t *testing.T, addr, word string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(word))
			c.(*net.TCPConn).CloseWrite()
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l, nil
}

// Where nobody has ever told what the range is, its machine is waited for: the first port would be another program.
func TestAPortOfARangeBySOCKSWaitsForItsMachine(t *testing.T) {
	_, first := newRelay(t)
	home, laptop := newHome(t), newMachine(t)
	port := fwdtest.FreePort(t)
	for i, word := range []string{"the first", "the second"} {
		if _, err := greeter(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(port+i)), word); err != nil {
			t.Fatal(err)
		}
	}
	write(t, home.Config, "[[expose]]\ntarget = '%d-%d'\nname = 'web'\n", port, port+1)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Up(ctx, home, UpRequest{Invite: first}, func(Event) {}) }()
	nas := &machine{t, home}
	eventually(t, "the service is there", func() bool {
		_, err := nas.call(PeersRequest{})
		return err == nil && nas.wish("expose web").State == stateUp
	})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"})
	stop()
	await(t, ended, "the machine's end")

	entry, _ := laptop.hold(SocksRequest{Local: "0"}, "listening")
	got := make(chan string)
	go func() { // ends with the answer, or with the entry's patience
		c, err := bySOCKS(t, entry.Local, net.JoinHostPort("web.fwd", strconv.Itoa(port+1)))
		if err != nil {
			got <- err.Error()
			return
		}
		word := make([]byte, 100)
		n, _ := c.Read(word)
		got <- string(word[:n])
	}()
	eventually(t, "nobody reaches the machine", func() bool {
		_, err := laptop.call(PingRequest{Name: "web", Count: 1})
		return err != nil
	})
	newUp(t, home, UpRequest{})
	if word := await(t, got, "the program's answer"); word != "the second" {
		t.Errorf("the program got %q", word)
	}
}

// The far side has ended its direction and the program here is silent: only the session can tell of its loss.
func TestASessionBySOCKSThatIsLostEndsItsConnection(t *testing.T) {
	nas, laptop := newPair(t)
	l, err := greeter(t, "127.0.0.1:0", "the last words")
	if err != nil {
		t.Fatal(err)
	}
	_, end := nas.hold(ExposeRequest{Target: l.Addr().String(), Name: "web"}, "exposed")
	entry, _ := laptop.hold(SocksRequest{Local: "0"}, "listening")
	c, err := bySOCKS(t, entry.Local, "web.fwd:80")
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(c); err != nil || string(got) != "the last words" {
		t.Fatalf("it says %q, %v", got, err)
	}
	open := func(n int) func() bool {
		return func() bool { return laptop.status().Forwards[0].Sessions == n }
	}
	eventually(t, "the connection counts", open(1))
	end()
	eventually(t, "the connection's end", open(0))
}

// What a program asks for is told as words: a terminal obeys no local user, and no neighbour.
func TestWhatASOCKSProgramAsksForIsToldAsWords(t *testing.T) {
	_, laptop := newPair(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	client, err := Dial(ctx, laptop.home)
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan Event, 64)
	go client.Call(ctx, SocksRequest{Local: "0"}, func(e Event) { events <- e }) // ends with ctx
	local := await(t, events, "listening").Local
	if _, err := bySOCKS(t, local, "\x1b\x07x.fwd:80"); err == nil {
		t.Fatal("a name that nobody has was reached")
	}
	told := await(t, events, "a word about it").Message
	if i := strings.IndexFunc(told, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 || !strings.Contains(told, ".fwd:80") {
		t.Errorf("told is %q", told)
	}
}
