package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fwd/itest/fwdtest"
)

// patience is how long a test waits for what takes milliseconds on an idle machine: long, for the machine may have
// much else to do and the race detector to carry.
const patience = 3 * time.Minute

// A machine is one home with its daemon, in this process and on loopback.
type machine struct {
	t    *testing.T
	home Home
}

// newMachine runs a background daemon, which never ends by itself here.
func newMachine(t *testing.T) *machine {
	t.Helper()
	return newLingering(t, 0)
}

// newLingering runs one that ends so long after its last wish.
func newLingering(t *testing.T, linger time.Duration) *machine {
	t.Helper()
	m := &machine{t, Home{State: shortTemp(t)}}
	m.start(linger)
	return m
}

// start runs the background daemon and returns it.
func (m *machine) start(linger time.Duration) *Daemon {
	m.t.Helper()
	assembled := make(chan *Daemon, 1)
	ready := make(chan struct{})
	m.run(func(ctx context.Context) error {
		return run(ctx, m.home, options{
			linger: linger,
			before: func(_ context.Context, d *Daemon) error { assembled <- d; return nil },
			ready:  func() { close(ready) },
		})
	})
	await(m.t, ready, "the daemon's socket")
	return await(m.t, assembled, "the daemon")
}

// newRelay runs a foreground relay and returns its first invite.
func newRelay(t *testing.T) (*machine, string) {
	t.Helper()
	m := &machine{t, Home{State: shortTemp(t)}}
	port := freePort(t)
	invite := make(chan string, 1)
	m.run(func(ctx context.Context) error {
		request := RelayRequest{Listen: []string{"127.0.0.1:" + port}, Announce: []string{"127.0.0.1:" + port}, Name: "vps"}
		return Run(ctx, m.home, request, func(e Event) {
			if e.Event == "invite" {
				invite <- e.Invite
			}
		})
	})
	return m, await(t, invite, "the relay's invite")
}

// newPair runs two machines in the network of a relay.
func newPair(t *testing.T) (nas, laptop *machine) {
	t.Helper()
	_, first := newRelay(t)
	nas, laptop = newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"}) // the first machine is an admin
	return nas, laptop
}

func (m *machine) run(f func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	m.t.Cleanup(func() {
		stop()
		if err := await(m.t, ended, "the daemon's end"); err != nil && !errors.Is(err, context.Canceled) {
			m.t.Errorf("the daemon ended with %v", err)
		}
	})
}

// call makes a request and returns its events.
func (m *machine) call(request any) ([]Event, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := Dial(ctx, m.home)
	if err != nil {
		return nil, err
	}
	var events []Event
	err = c.Call(ctx, request, func(e Event) { events = append(events, e) })
	return events, err
}

// must makes a request that has to succeed; as a script would, it tries again where nobody was reached in time.
func (m *machine) must(request any) []Event {
	m.t.Helper()
	events, err := m.call(request)
	for end := time.Now().Add(patience); err != nil && failureOf(err).Exit == ExitUnreachable && time.Now().Before(end); {
		events, err = m.call(request)
	}
	if err != nil {
		m.t.Fatalf("%T: %v", request, err)
	}
	return events
}

// hold makes a request that lasts until the test ends or end is called, and
// returns its event of the given kind.
func (m *machine) hold(request any, kind string) (Event, func()) {
	m.t.Helper()
	return m.holdFor(request, kind, func(Event) bool { return true })
}

// holdFor is hold for the first such event that is as wanted.
func (m *machine) holdFor(request any, kind string, wanted func(Event) bool) (Event, func()) {
	m.t.Helper()
	ctx, end := context.WithCancel(context.Background())
	m.t.Cleanup(end)
	c, err := Dial(ctx, m.home)
	if err != nil {
		m.t.Fatal(err)
	}
	got := make(chan Event, 64)
	go func() {
		err := c.Call(ctx, request, func(e Event) {
			if e.Event == kind && wanted(e) {
				got <- e
			}
		})
		if ctx.Err() == nil {
			got <- Event{Event: "error", Message: fmt.Sprint(err)}
		}
	}()
	e := await(m.t, got, kind)
	if e.Event == "error" {
		m.t.Fatalf("%T: %s", request, e.Message)
	}
	return e, end
}

func (m *machine) status() Status {
	m.t.Helper()
	for _, e := range m.must(StatusRequest{}) {
		if e.Event == "status" {
			var s Status
			if err := json.Unmarshal(e.Result, &s); err != nil {
				m.t.Fatal(err)
			}
			return s
		}
	}
	m.t.Fatal("status said nothing")
	return Status{}
}

// goBy waits until each of so many forwards is told to go by that kind of path.
func (m *machine) goBy(kind string, forwards int) {
	m.t.Helper()
	eventually(m.t, "all forwards go by "+kind, func() bool {
		list := m.status().Forwards
		return len(list) == forwards && !slices.ContainsFunc(list, func(f ForwardStatus) bool { return f.Path == nil || f.Path.Kind != kind })
	})
}

func (m *machine) invite() string {
	m.t.Helper()
	for _, e := range m.must(InviteRequest{}) {
		if e.Event == "invite" {
			return e.Invite
		}
	}
	m.t.Fatal("no invite")
	return ""
}

func TestAFileGoesThroughBothWaysAndHalfCloseIsKept(t *testing.T) {
	nas, laptop := newPair(t)

	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	e, _ := laptop.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0"}, "listening")

	sent := make([]byte, 1<<20)
	rand.Read(sent)
	conn, err := net.Dial("tcp", e.Local)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		conn.Write(sent)
		conn.(*net.TCPConn).CloseWrite() // the answer begins only now
	}()
	conn.SetReadDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	for i, j := 0, len(got)-1; i < j; i, j = i+1, j-1 {
		got[i], got[j] = got[j], got[i]
	}
	if !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back, not the %d sent in reverse", len(got), len(sent))
	}
	if s := laptop.status(); s.Name != "laptop" || len(s.Forwards) != 1 || s.Forwards[0].Path == nil {
		t.Errorf("status is %+v", s)
	}
}

func TestARevokedMachineIsOutAtOnce(t *testing.T) {
	relay, first := newRelay(t)
	nas, phone := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	phone.must(JoinRequest{Invite: relay.invite(), As: "phone"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	e, _ := phone.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0"}, "listening")
	conn, err := net.Dial("tcp", e.Local)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, "the session at the exit", func() bool { return len(nas.status().Sessions) == 1 })

	nas.must(RevokeRequest{Peer: "phone"})
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the revoked machine's connection ended with %v, want a reset", err)
	}
	if _, err := phone.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: 3 * time.Second}); err == nil {
		t.Error("the revoked machine still reaches the service")
	}
}

func TestANewEpochLeavesWhatItAllowsAlone(t *testing.T) {
	relay, first := newRelay(t)
	nas, laptop := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: relay.invite(), As: "laptop"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	e, _ := laptop.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0"}, "listening")
	conn, err := net.Dial("tcp", e.Local)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("1"))
	eventually(t, "the session at the exit", func() bool { return len(nas.status().Sessions) == 1 })

	relay.must(RenameRequest{Peer: "laptop", Name: "notebook"})
	epoch := relay.status().Network.Epoch
	eventually(t, "the new epoch at the NAS", func() bool { return nas.status().Network.Epoch == epoch })
	nas.must(AllowRequest{Service: "nas", Who: "notebook"}) // asks about every session again
	conn.Write([]byte("2"))
	conn.(*net.TCPConn).CloseWrite()
	conn.SetReadDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(conn); err != nil || string(got) != "21" {
		t.Errorf("the session gave %q, %v after a change that was not about it", got, err)
	}
}

func TestAnUnknownServiceIsExitThree(t *testing.T) {
	_, first := newRelay(t)
	laptop := newMachine(t)
	laptop.must(JoinRequest{Invite: first})
	_, err := laptop.call(ConnectRequest{Name: "nsa", Local: "0"})
	if f := failureOf(err); f.Exit != ExitUnknownName || f.Hint == "" {
		t.Errorf("got %+v", f)
	}
}

func TestAnInviteIsUsedOnce(t *testing.T) {
	_, first := newRelay(t)
	a, b := newMachine(t), newMachine(t)
	a.must(JoinRequest{Invite: first})
	if !strings.Contains(string(a.must(JoinRequest{Invite: first})[0].Result), `"again":true`) {
		t.Error("the same machine again is not told that it belongs already")
	}
	_, err := b.call(JoinRequest{Invite: first})
	if f := failureOf(err); f.Code != "invite-used" || f.Exit != ExitRefused {
		t.Errorf("got %+v, want invite-used", f)
	}
}

// reverser is a service that reads everything and answers with it in reverse.
func reverser(t *testing.T) (target string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				data, err := io.ReadAll(c)
				if err != nil {
					return
				}
				for i, j := 0, len(data)-1; i < j; i, j = i+1, j-1 {
					data[i], data[j] = data[j], data[i]
				}
				c.Write(data)
			}()
		}
	}()
	return l.Addr().String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("not within %s: %s", patience, what)
		panic("unreachable")
	}
}

func freePort(t *testing.T) string { return strconv.Itoa(fwdtest.FreePort(t)) }

// shortTemp: t.TempDir's names are too long for a unix socket.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fwd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestTheOwnersWordEndsWhatARevokedMachineWishes(t *testing.T) {
	relay, first := newRelay(t)
	nas, phone := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	phone.must(JoinRequest{Invite: relay.invite(), As: "phone"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	relay.must(RevokeRequest{Peer: "phone"})
	eventually(t, "refusal of a new connect", func() bool {
		_, err := phone.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: time.Second})
		return failureOf(err).Code == CodeRevoked && failureOf(err).Exit == ExitRefused
	})
	if _, err := phone.call(JoinRequest{}); failureOf(err).Code != CodeRevoked {
		t.Errorf("asked whether it belongs: %v", err)
	}
	phone.must(JoinRequest{Invite: relay.invite()})
	phone.must(JoinRequest{})
}

// Another exchange with the owner may end before the answer to the wish is there.
func TestWhoLeavesIsNotToldThatItWasTakenOff(t *testing.T) {
	relay, first := newRelay(t)
	nas := newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")

	laptop := &machine{t, Home{State: shortTemp(t)}}
	d := laptop.start(0)
	laptop.must(JoinRequest{Invite: relay.invite(), As: "laptop"})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := Dial(ctx, laptop.home)
	if err != nil {
		t.Fatal(err)
	}
	listening, ended := make(chan bool, 1), make(chan error, 1)
	go func() {
		ended <- c.Call(ctx, ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience}, func(e Event) {
			if e.Event == "listening" {
				listening <- true
			}
		})
	}()
	await(t, listening, "the local port")

	owner, left := d.book.Current().Owner, make(chan struct{})
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for {
				select {
				case <-left:
					return
				default:
					d.exchange(ctx, owner)
				}
			}
		})
	}
	laptop.must(LeaveRequest{})
	close(left)
	asking.Wait()
	if err := await(t, ended, "the connect's end"); err != nil {
		t.Errorf("the forward ended with: %v", err)
	}
	if _, err := d.belongs(); !errors.Is(err, errNoNetwork) {
		t.Errorf("after it: %v", err)
	}
}

func TestWhoAskedIsToldOfEachSession(t *testing.T) {
	nas, laptop := newPair(t)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	begin := func(m *machine, request any) (next func(kind string) Event) {
		c, err := Dial(ctx, m.home)
		if err != nil {
			t.Fatal(err)
		}
		events := make(chan Event, 64)
		go c.Call(ctx, request, func(e Event) { events <- e })
		return func(kind string) Event {
			for {
				if e := await(t, events, kind); e.Event == kind {
					return e
				}
			}
		}
	}
	exposed := begin(nas, ExposeRequest{Target: reverser(t), Name: "nas", Tell: true})
	exposed("exposed")
	connected := begin(laptop, ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Tell: true})
	conn, err := net.Dial("tcp", connected("listening").Local)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ends := map[string]func(string) Event{"entry": connected, "exit": exposed}
	var id string
	for role, next := range ends {
		s := next("session").Session
		if s.State != "open" || s.Role != role || id != "" && s.ID != id {
			t.Errorf("began as %+v", s)
		}
		id = s.ID
	}
	conn.Write([]byte("abc"))
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "cba" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	conn.Close()
	for _, next := range ends {
		if s := next("session").Session; s.State != "closed" || s.ID != id || s.Sent != 3 || s.Received != 3 {
			t.Errorf("ended as %+v", s)
		}
	}
}

// A machine that stops in the midst of a transfer says so: the other side does not hold its sessions for it.
func TestWhoStopsLeavesNoSessionBehind(t *testing.T) {
	nas, laptop := newPair(t)
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			go io.Copy(io.Discard, c) // ends with the connection
		}
	}()
	nas.hold(ExposeRequest{Target: target.Addr().String(), Name: "nas"}, "exposed")
	e, _ := laptop.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0"}, "listening")
	var uploads sync.WaitGroup
	defer uploads.Wait()
	for range 4 {
		conn, err := net.Dial("tcp", e.Local)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		uploads.Go(func() {
			for block := make([]byte, 1<<20); ; {
				if _, err := conn.Write(block); err != nil {
					return
				}
			}
		})
	}
	moved := func() (n int64) {
		for _, s := range nas.status().Sessions {
			n += s.Received
		}
		return n
	}
	eventually(t, "much has come", func() bool { return moved() > 64<<20 })
	laptop.must(StopRequest{})
	eventually(t, "none of its sessions is held", func() bool { return len(nas.status().Sessions) == 0 })
}
