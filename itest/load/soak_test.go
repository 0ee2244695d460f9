//go:build linux

package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

var (
	soakFor  = flag.Duration("soak", 0, "run TestSoak for so long")
	soakSeed = flag.Uint64("seed", 1, "of the soak's faults")
	soakKeep = flag.String("keep", "", "a folder for the soak's heap profiles, stacks and logs")
)

// soakPatience is how long one byte may take in all that happens there, and how long anything may take to be as it was.
const soakPatience = 2 * time.Minute

// TestSoak has a relay and two machines behind NATs do a bit of everything for long, at a moderate rate, with a fault
// about every minute, and looks at what they hold meanwhile and afterwards. No connection may be lost but by deny
// and revoke, no byte be wrong.
//
//	go test ./itest/load -soak 1h -run TestSoak -v -timeout 2h
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("runs only with -soak")
	}
	s := newSoak(t)
	s.warmUp()
	s.rest("at rest, after warming up", nil)
	s.phase(*soakFor)
	s.atTheEnd()
}

// soak is the world of a soak: a relay that owns the network, a NAS that exposes, a laptop in another home that
// connects, and guests that come and go in a third.
type soak struct {
	t                  *testing.T
	lab                *lab.Lab
	nasHome            *lab.Home
	homes              [2]*lab.Home // the laptop's, and another to move to
	relay, nas, laptop *fwdtest.Peer
	relaying           *fwdtest.Process
	guests             *lab.Host
	data               *fwdtest.PatternServer
	local              map[string]string // addresses of the laptop's forwards, by service

	began time.Time
	rng   *rand.Rand // of faults alone

	// awake is held for reading by whoever needs all three daemons, for writing by a fault that takes one away.
	awake sync.RWMutex

	mu      sync.Mutex
	done    map[string]int           // what was done how often
	longest map[string]time.Duration // and took how long at most
	fault   string                   // the one that is on, or the last
	held    [2]*echoing              // connections of the service that deny ends
	relays  []*fwdtest.Process       // all runs of the relay

	samples []sample
	base    [3]holding // at rest
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	l := lab.New(t)
	slow := lab.Slow(10 * time.Millisecond)
	s := &soak{t: t, lab: l, began: time.Now(), rng: rand.New(rand.NewPCG(*soakSeed, 0)),
		done: map[string]int{}, longest: map[string]time.Duration{}, local: map[string]string{}}
	s.nasHome = l.Home("a", lab.PortRestricted, slow)
	s.homes = [2]*lab.Home{l.Home("b", lab.PortRestricted, slow), l.Home("away", lab.PortRange, slow)}
	s.relay = fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	s.nas = fwdtest.New(t, s.nasHome.Host("nas"))
	s.laptop = fwdtest.New(t, s.homes[0].Host("laptop"))
	s.guests = s.homes[1].Host("guest")
	s.startRelay()
	s.nas.Join(s.relaying.Wait("invite").Invite, "nas-box")
	s.laptop.Join(s.relay.Invite(), "laptop")

	s.data = fwdtest.ServePattern(t, s.nas.Host, "127.0.0.1:9000")
	echo := fwdtest.ServeEcho(t, s.nas.Host, "127.0.0.1:9001").String()
	s.serveUDP("127.0.0.1:9100")
	for name, target := range map[string]string{"data": s.data.Addr(), "echo": echo, "held": echo, "udp": "9100/udp"} {
		s.nas.Start("expose", target, "--name", name).Wait("exposed")
		s.local[name] = s.laptop.Start("connect", name, "127.0.0.1:0").Wait("listening").Local
	}
	s.laptop.WaitPath("data", "direct")
	return s
}

func (s *soak) startRelay() {
	s.relaying = s.relay.Start("relay", "--as", "relay")
	s.relaying.Wait("relay")
	s.relays = append(s.relays, s.relaying)
}

// warmUp has each kind of work make what is made once.
func (s *soak) warmUp() {
	s.t.Helper()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { s.short(i) })
	}
	wg.Go(func() { s.transfer("warm-up", fwdtest.Load{Up: 8 << 20, Down: 8 << 20}) })
	wg.Wait()
	s.forward(0)
	s.guest(0)
}

// phase does all work for so long, with faults.
func (s *soak) phase(span time.Duration) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), span)
	defer cancel()
	s.began = time.Now()
	for i := range s.held {
		s.held[i] = s.dialEcho("held", "held")
	}
	var wg sync.WaitGroup
	for _, every := range []time.Duration{time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute,
		2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 2 * span, 2 * span} { // the last two are silent all the while
		wg.Go(func() { s.keepEchoing(ctx, every) })
	}
	again := func(f func(round int)) {
		wg.Go(func() {
			for round := 1; ctx.Err() == nil; round++ {
				f(round)
			}
		})
	}
	each := func(every time.Duration, f func(round int)) {
		again(func(round int) {
			if pause(ctx, every) {
				f(round)
			}
		})
	}
	const minute = 20 << 20 // bytes each way
	again(func(int) { s.transfer("bulk", fwdtest.Load{Up: minute, Down: minute, Rate: minute / 58}) })
	again(func(int) { s.transfer("client half-closed", fwdtest.Load{Up: 1, Down: 96 << 10, Rate: 2 << 10}) })
	again(func(int) {
		s.transfer("server half-closed", fwdtest.Load{Up: 96 << 10, Down: 1, Rate: 2 << 10, UpLast: true})
	})
	again(func(round int) {
		s.transfer("client stalled", fwdtest.Load{Down: 3 << 20, Progress: stand(ctx, time.Duration(20+round%3*50)*time.Second)})
	})
	again(func(round int) {
		s.transfer("server stalled", fwdtest.Load{Up: 3 << 20, Received: stand(ctx, time.Duration(20+round%4*30)*time.Second)})
	})
	each(200*time.Millisecond, func(round int) { wg.Go(func() { s.short(round) }) })
	each(5*time.Second, s.call)
	each(min(20*time.Second, span/8), s.forward)
	each(min(4*time.Minute, span/4), s.guest)
	wg.Go(func() { s.datagrams(ctx) })
	wg.Go(func() { s.faults(ctx, span) })
	wg.Go(func() { s.sampling(ctx, min(time.Minute, span/6)) })
	wg.Wait()
	for _, e := range s.held {
		s.finish(e)
	}
	s.t.Logf("%s %v all is closed", time.Now().Format(time.TimeOnly), s.at())
}

// pause reports false when the soak is over.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// stand is a reader that stands still for so long after its first bytes.
func stand(ctx context.Context, d time.Duration) func(int64) {
	var stood atomic.Bool
	return func(int64) {
		if stood.CompareAndSwap(false, true) {
			pause(ctx, d)
		}
	}
}

func (s *soak) at() time.Duration { return time.Since(s.began).Round(time.Second) }

// lost is a failure, with what was on when it was noticed.
func (s *soak) lost(what string, err error) {
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	s.t.Errorf("%s %v %s: %v (fault: %s)", time.Now().Format(time.TimeOnly), s.at(), what, err, fault)
}

func (s *soak) did(what string, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[what]++
	s.longest[what] = max(s.longest[what], took)
}

// transfer moves a load, every byte of which is checked.
func (s *soak) transfer(what string, load fwdtest.Load) {
	load.Limit = 10 * time.Minute
	r, err := s.data.TransferFrom(s.laptop.Host, s.local["data"], load)
	if err != nil {
		s.lost(what, err)
		return
	}
	s.did(what, max(r.Stall, r.StallUp))
}

// short is a connection of a moment, ended in one of three ways.
func (s *soak) short(round int) {
	began := time.Now()
	err := func() error {
		c, err := s.laptop.Host.Dial(s.t.Context(), "tcp", s.local["echo"])
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(began.Add(soakPatience))
		want := make([]byte, 1+round*997%16384)
		io.ReadFull(fwdtest.Pattern(uint64(round)), want)
		if _, err := c.Write(want); err != nil {
			return err
		}
		if round%3 == 0 {
			c.(*net.TCPConn).CloseWrite()
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("wrong bytes came back")
		}
		switch round % 3 {
		case 0:
			if n, err := c.Read(got[:1]); n != 0 || err != io.EOF {
				return fmt.Errorf("after the end: %d, %v", n, err)
			}
		case 1:
			c.(*net.TCPConn).SetLinger(0)
		}
		return nil
	}()
	if err != nil {
		s.lost(fmt.Sprintf("a short connection, %v old", time.Since(began).Round(time.Millisecond)), err)
		return
	}
	s.did("short", time.Since(began))
}

// echoing is a connection to an echo server that lives long. What comes back is a pattern's next bytes.
type echoing struct {
	conn net.Conn
	out  io.Reader
	sent int64
	got  atomic.Int64
	news chan struct{}
	over chan struct{} // closed when it has ended, by err
	err  error
}

// dialEcho dials a forward; nil: it failed.
func (s *soak) dialEcho(what, service string) *echoing {
	e, err := echoOn(s.laptop.Host, s.local[service])
	if err == nil {
		_, err = e.ask(100)
	}
	if err != nil {
		s.lost(what, err)
		return nil
	}
	return e
}

func echoOn(host *lab.Host, addr string) (*echoing, error) {
	ctx, cancel := context.WithTimeout(context.Background(), soakPatience)
	defer cancel()
	c, err := host.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	seed := rand.Uint64()
	e := &echoing{conn: c, out: fwdtest.Pattern(seed), news: make(chan struct{}, 1), over: make(chan struct{})}
	go e.read(fwdtest.Pattern(seed)) // ends with the connection
	return e, nil
}

func (e *echoing) read(pattern io.Reader) {
	defer close(e.over)
	defer e.conn.Close()
	got, want := make([]byte, 16<<10), make([]byte, 16<<10)
	for {
		n, err := e.conn.Read(got)
		io.ReadFull(pattern, want[:n])
		if !bytes.Equal(got[:n], want[:n]) {
			e.err = fmt.Errorf("wrong bytes after %d", e.got.Load())
			return
		}
		e.got.Add(int64(n))
		select {
		case e.news <- struct{}{}:
		default:
		}
		if err != nil {
			e.err = err
			return
		}
	}
}

// ask has n bytes come back.
func (e *echoing) ask(n int64) (time.Duration, error) {
	began := time.Now()
	limit := time.After(soakPatience)
	e.conn.SetWriteDeadline(began.Add(soakPatience))
	sent, err := io.CopyN(e.conn, e.out, n)
	e.sent += sent
	for err == nil && e.got.Load() < e.sent {
		select {
		case <-e.news:
		case <-e.over:
			if err = e.err; e.got.Load() >= e.sent {
				err = nil
			}
		case <-limit:
			err = fmt.Errorf("%d of %d bytes came back in %v", e.got.Load(), e.sent, soakPatience)
		}
	}
	return time.Since(began), err
}

// finish ends it as programs do, and fails where it is not whole; nil is fine.
func (s *soak) finish(e *echoing) {
	if e == nil {
		return
	}
	defer e.conn.Close()
	took, err := e.ask(1000)
	if err == nil {
		e.conn.(*net.TCPConn).CloseWrite()
		select {
		case <-e.over:
			if err = e.err; err == io.EOF && e.got.Load() == e.sent {
				err = nil
			}
		case <-time.After(soakPatience):
			err = errors.New("no end of file comes back")
		}
	}
	if err != nil {
		s.lost("the end of an echo session", err)
		return
	}
	s.did("echo sessions ended", took)
}

// keepEchoing is one session for the whole soak that asks now and then.
func (s *soak) keepEchoing(ctx context.Context, every time.Duration) {
	what := fmt.Sprintf("echo every %v", every)
	if every > *soakFor {
		what = "silent echo"
	}
	e := s.dialEcho(what, "echo")
	if e == nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			s.finish(e)
			return
		case <-e.over:
			s.lost(what, fmt.Errorf("ended while idle: %w", e.err))
			return
		case <-time.After(every):
		}
		took, err := e.ask(1 + rand.Int64N(4000))
		if err != nil {
			s.lost(what, err)
			e.conn.Close()
			return
		}
		s.did(what, took)
	}
}

// serveUDP sends each datagram back.
func (s *soak) serveUDP(addr string) {
	s.t.Helper()
	c, err := s.nas.Host.ListenUDP(addr)
	if err != nil {
		s.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { // ends with the socket
		b := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(b[:n], from)
		}
	})
	s.t.Cleanup(func() { c.Close(); wg.Wait() })
}

// datagrams sends ten a second. Some may be lost, none doubled or changed.
func (s *soak) datagrams(ctx context.Context) {
	local := s.local["udp"]
	c, err := s.laptop.Host.Dial(ctx, "udp", local[:len(local)-len("/udp")])
	if err != nil {
		s.lost("udp", err)
		return
	}
	defer c.Close()
	size := func(i uint32) int { return 4 + int(i)*37%1400 }
	var sent, back atomic.Int64
	var reading sync.WaitGroup
	reading.Go(func() { // ends with the deadline
		seen := map[uint32]bool{}
		b := make([]byte, 64<<10)
		last := time.Now()
		for {
			n, err := c.Read(b)
			if err != nil {
				if last := time.Since(last); last > 30*time.Second {
					s.lost("udp", fmt.Errorf("the last answer came %v before the end", last))
				}
				return
			}
			if n < 4 {
				s.lost("udp", fmt.Errorf("a datagram of %d bytes", n))
				continue
			}
			i := binary.BigEndian.Uint32(b)
			switch {
			case n != size(i) || !bytes.Equal(b[4:n], bytes.Repeat([]byte{byte(i)}, n-4)):
				s.lost("udp", fmt.Errorf("datagram %d came back changed", i))
			case seen[i]:
				s.lost("udp", fmt.Errorf("datagram %d came back twice", i))
			}
			seen[i] = true
			back.Add(1)
			s.did("datagrams back", time.Since(last)) // the longest gap
			last = time.Now()
		}
	})
	for i := uint32(0); pause(ctx, 100*time.Millisecond); i++ {
		c.Write(append(binary.BigEndian.AppendUint32(nil, i), bytes.Repeat([]byte{byte(i)}, size(i)-4)...))
		sent.Add(1)
	}
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	reading.Wait()
	s.t.Logf("udp: %d datagrams of %d came back", back.Load(), sent.Load())
}

// call has a daemon answer a question.
func (s *soak) call(round int) {
	s.awake.RLock()
	defer s.awake.RUnlock()
	p := []*fwdtest.Peer{s.laptop, s.nas, s.relay}[round%3]
	what := []string{"ls", "status", "peers"}[round/3%3]
	began := time.Now()
	if r := p.Run(what, "--json"); r.Code != 0 {
		s.lost("fwd "+what+" on "+p.Host.Name(), fmt.Errorf("exit %d: %s", r.Code, r.Stderr))
	}
	s.did("fwd "+what, time.Since(began))
}

// forward makes a forward, uses it, and ends it, by Ctrl-C or from elsewhere.
func (s *soak) forward(round int) {
	s.awake.RLock()
	defer s.awake.RUnlock()
	began := time.Now()
	p := s.laptop.Start("connect", "echo", "127.0.0.1:0")
	defer p.Interrupt()
	local := p.Wait("listening").Local
	e, err := echoOn(s.laptop.Host, local)
	if err == nil {
		_, err = e.ask(64 << 10)
	}
	if err != nil {
		s.lost("a new forward", err)
		return
	}
	defer e.conn.Close()
	s.did("forwards", time.Since(began))
	if round%3 == 0 {
		s.finish(e)
	}
	if round%2 == 0 {
		p.Interrupt()
	} else if r := s.laptop.Run("disconnect", local); r.Code != 0 {
		s.lost("fwd disconnect", fmt.Errorf("exit %d: %s", r.Code, r.Stderr))
	}
	select {
	case <-e.over:
	case <-time.After(soakPatience):
		s.lost("a forward's end", errors.New("its connection goes on"))
	}
}

// guest is a machine that is let in, uses a service, and is put out again.
func (s *soak) guest(round int) {
	s.awake.RLock()
	defer s.awake.RUnlock()
	began := time.Now()
	name := fmt.Sprintf("guest%d", round)
	g := fwdtest.New(s.t, s.guests)
	fails := func(what string, r fwdtest.Result) bool {
		if r.Code != 0 {
			s.lost(name+": "+what, fmt.Errorf("exit %d: %s", r.Code, r.Stderr))
		}
		return r.Code != 0
	}
	invite := s.relay.Run("invite", "--for", "1h")
	if fails("invite", invite) || fails("join", g.RunWith(invite.Stdout, "join", "--as", name)) {
		return
	}
	defer g.Run("stop")
	p := g.Start("connect", "echo", "127.0.0.1:0")
	defer p.Interrupt()
	e, err := echoOn(s.guests, p.Wait("listening").Local)
	if err == nil {
		_, err = e.ask(256 << 10)
	}
	if err != nil {
		s.lost(name, err)
		return
	}
	defer e.conn.Close()
	s.did("guests", time.Since(began))
	revoked := time.Now()
	if fails("revoke", s.relay.Run("revoke", name)) {
		return
	}
	select {
	case <-e.over:
		s.did("guests out", time.Since(revoked))
	case <-time.After(soakPatience):
		s.lost(name, errors.New("it is revoked, and its connection goes on"))
	}
	if r := g.Run("connect", "echo", "127.0.0.1:0", "--timeout", "5s"); r.Code == 0 {
		s.lost(name, errors.New("it is revoked, and may connect"))
	}
}
