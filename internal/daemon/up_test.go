package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fwd/identity"
)

// newUp runs `fwd up` in a home; write writes its fwd.toml.
func newUp(t *testing.T, home Home, request UpRequest) *machine {
	t.Helper()
	return newUpTold(t, home, request, func(Event) {})
}

// newUpTold is newUp, whose events go to on.
func newUpTold(t *testing.T, home Home, request UpRequest, on func(Event)) *machine {
	t.Helper()
	m := &machine{t, home}
	started := make(chan struct{})
	m.run(func(ctx context.Context) error {
		go func() {
			for ctx.Err() == nil {
				if c, err := Dial(ctx, home); err == nil {
					c.Close()
					close(started)
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		return Up(ctx, home, request, on)
	})
	await(t, started, "fwd up's socket")
	return m
}

func newHome(t *testing.T) Home {
	dir := shortTemp(t)
	return Home{State: dir, Config: filepath.Join(dir, "fwd.toml")}
}

func write(t *testing.T, path, format string, args ...any) {
	t.Helper()
	// As editors do: a new file in the old one's place.
	if err := os.WriteFile(path+".new", fmt.Appendf(nil, format, args...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) wish(key string) WishStatus {
	for _, w := range m.status().Wishes {
		if w.Wish == key {
			return w
		}
	}
	return WishStatus{}
}

func (m *machine) wishIs(key, state string) {
	m.t.Helper()
	eventually(m.t, key+" is "+state, func() bool { return m.wish(key).State == state })
}

func (m *machine) reload() Reloaded {
	m.t.Helper()
	events := m.must(ReloadRequest{})
	var r Reloaded
	if err := json.Unmarshal(events[len(events)-1].Result, &r); err != nil {
		m.t.Fatal(err)
	}
	return r
}

// A talk is a connection that is held open; say proves that it still is.
type talk struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

func newTalk(t *testing.T, network, addr string) *talk {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &talk{t, c, bufio.NewReader(c)}
}

func (k *talk) say(word string) {
	k.t.Helper()
	k.c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(k.c, word)
	if got, err := k.r.ReadString('\n'); err != nil || got != word+"\n" {
		k.t.Fatalf("said %q, got %q, %v", word, got, err)
	}
}

// echo is a service that repeats each byte at once.
func echo(t *testing.T, network, addr string) string {
	t.Helper()
	l, err := net.Listen(network, addr)
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
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func TestReloadChangesTheDifferenceAndDropsNoSession(t *testing.T) {
	_, first := newRelay(t)
	one, two := echo(t, "tcp", "127.0.0.1:0"), echo(t, "tcp", "127.0.0.1:0")
	nasHome, laptopHome := newHome(t), newHome(t)
	write(t, nasHome.Config, "name = 'nas-box'\n[[expose]]\ntarget = %q\nname = 'one'\n[[expose]]\ntarget = %q\nname = 'two'\n", one, one)
	nas := newUp(t, nasHome, UpRequest{Invite: first})
	nas.wishIs("expose one", stateUp)

	write(t, laptopHome.Config, "[[connect]]\nservice = 'one'\nlocal = '127.0.0.1:0'\n")
	laptop := newUp(t, laptopHome, UpRequest{Invite: nas.invite()})
	laptop.wishIs("connect one at 127.0.0.1:0", stateUp)
	held := newTalk(t, "tcp", laptop.status().Forwards[0].Local)
	held.say("before")

	// At the entry: one more, and another kind of path for the first.
	port := freePort(t)
	write(t, laptopHome.Config, "[log]\nlevel = 'debug'\n[[connect]]\nservice = 'one'\nlocal = '127.0.0.1:0'\npath = 'relay'\n[[connect]]\nservice = 'two'\nlocal = %q\n", port)
	r := laptop.reload()
	if !slices.Equal(r.Added, []string{"connect two at 127.0.0.1:" + port}) || len(r.Removed) > 0 || !slices.Equal(r.Changed, []string{"connect one at 127.0.0.1:0"}) {
		t.Errorf("reload says %+v", r)
	}
	held.say("after the entry's reload")
	laptop.wishIs("connect two at 127.0.0.1:"+port, stateUp)
	newTalk(t, "tcp", "127.0.0.1:"+port).say("the new one")

	// At the exit: another target and list for the first, the second gone.
	write(t, nasHome.Config, "name = 'nas-box'\n[[expose]]\ntarget = %q\nname = 'one'\nallow = ['members', 'tag:x']\n[limits]\nhold = '1h'", two)
	r = nas.reload()
	if len(r.Added) > 0 || !slices.Equal(r.Removed, []string{"expose two"}) || !slices.Equal(r.Changed, []string{"expose one"}) || !slices.Equal(r.Restart, []string{"limits"}) {
		t.Errorf("reload says %+v", r)
	}
	held.say("after the exit's reload")
	if s := nas.status().Services; len(s) != 1 || s[0].Target != two || s[0].From != fromConfig {
		t.Errorf("services are %+v", s)
	}

	// A file with a mistake changes nothing and is told.
	write(t, nasHome.Config, "[[exposse]]\ntarget = '22'\n")
	_, err := nas.call(ReloadRequest{})
	if f := failureOf(err); f.Exit != ExitUsage || !strings.Contains(f.What, "fwd.toml:1: ") {
		t.Errorf("reload of a mistake: %v", err)
	}
	held.say("after the mistake")

	// Nobody has to say reload, and who may no longer is cut.
	write(t, nasHome.Config, "[[expose]]\ntarget = %q\nname = 'one'\nallow = ['vps']", two)
	eventually(t, "the file is noticed", func() bool { return slices.Equal(nas.status().Services[0].Allow, []string{"vps"}) })
	held.c.SetDeadline(time.Now().Add(patience))
	if _, err := held.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("who may no longer use it reads %v", err)
	}
}

func TestAChangeOfTheFileIsToldOnce(t *testing.T) {
	_, first := newRelay(t)
	home := newHome(t)
	nas := newUp(t, home, UpRequest{Invite: first})
	eventually(t, "it has joined", func() bool { return nas.status().Network != nil })
	write(t, home.Config, "[[expose]]\ntarget = 'localhost:9'\nname = 'nas'\n")
	// Several at once, and the watch beside them.
	reports := make(chan Reloaded)
	for range 4 {
		go func() { reports <- nas.reload() }() // ends with the answer
	}
	told := 0
	for range 4 {
		r := await(t, reports, "an answer")
		if slices.Equal(r.Added, []string{"expose nas"}) {
			told++
		} else if !r.empty() {
			t.Errorf("reload says %+v", r)
		}
	}
	if told != 1 {
		t.Errorf("the change is told %d times", told)
	}
	// What the watch has done is news to who asks first.
	write(t, home.Config, "")
	eventually(t, "the watch has seen it", func() bool { return len(nas.status().Wishes) == 0 })
	if r := nas.reload(); !slices.Equal(r.Removed, []string{"expose nas"}) {
		t.Errorf("reload after the watch says %+v", r)
	}
	if r := nas.reload(); !r.empty() {
		t.Errorf("and once more says %+v", r)
	}
}

// "error" is a command's last word: a supervisor that hears it may act on it. fwd up goes on.
func TestAFailingWishIsNotToldAsTheEnd(t *testing.T) {
	home := newHome(t)
	newOrphans(t, time.Hour).admit(home, "laptop", identity.InviteOptions{})
	write(t, home.Config, "[[connect]]\nservice = 'nas'\n[[expose]]\ntarget = 'localhost:9'\nname = 'web'\n")
	events := make(chan Event, 64)
	laptop := newUpTold(t, home, UpRequest{}, func(e Event) { events <- e })
	for failed, exposed := false, false; !failed || !exposed; {
		switch e := await(t, events, "the failing wish and the other one"); e.Event {
		case "error":
			t.Fatalf("fwd up goes on, and says %+v", e)
		case "wish-failed":
			failed = true
			if e.Wish != "connect nas" || e.Failure == nil || e.Code != "unknown-name" {
				t.Errorf("got %+v, %+v", e, e.Failure)
			}
		case "exposed":
			exposed = true
		}
	}
	laptop.wishIs("connect nas", stateFailing)
}

// A wish takes the file's new words also while it is being fulfilled by the old ones.
func TestAChangeOfAWishThatIsBeingTriedIsNotLost(t *testing.T) {
	home := newHome(t)
	newOrphans(t, time.Hour).admit(home, "nas-box", identity.InviteOptions{})
	file := func(allow string) {
		write(t, home.Config, "[[expose]]\ntarget = 'localhost:9'\nname = 'nas'\nallow = [%q]\n", allow)
	}
	file("members")
	offered, changed := make(chan struct{}), make(chan struct{})
	nas := newUpTold(t, home, UpRequest{}, func(e Event) {
		if strings.Contains(e.Message, "the short name waits") { // for the owner; the next event says that it is exposed
			offered <- struct{}{}
			<-changed
		}
	})
	for _, c := range []struct{ allow, state, failure string }{
		{"tag:trusted", stateUp, ""},
		{"nobody-here", stateFailing, "nobody-here"},
	} {
		await(t, offered, "the service on offer")
		file(c.allow)
		nas.reload()
		changed <- struct{}{}
		nas.wishIs("expose nas", c.state)
		if got := nas.wish("expose nas").Error; !strings.Contains(got, c.failure) {
			t.Errorf("allow %q: it says %q", c.allow, got)
		}
		if list := nas.status().Services; c.state == stateUp && !slices.Equal(list[0].Allow, []string{c.allow}) || c.state == stateFailing && len(list) > 0 {
			t.Errorf("allow %q: it exposes %+v", c.allow, list)
		}
		nas.must(UnexposeRequest{Name: "nas"})
		file("members")
		nas.reload()
	}
	await(t, offered, "the service on offer")
	close(changed)
}

// Each of a service's forwards is known by the words of the file, however its address is told.
func TestReloadChangesThePathOfTheForwardThatIsMeant(t *testing.T) {
	_, first := newRelay(t)
	nas := newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	nas.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "web"}, "exposed")
	home := newHome(t)
	all, here := "0.0.0.0:"+freePort(t), "localhost:"+freePort(t)
	file := func(paths ...any) {
		connect := "[[connect]]\nservice = 'web'\npath = %q\n"
		write(t, home.Config, connect+connect+"local = '"+all+"'\n"+connect+"local = '"+here+"'\n", paths...)
	}
	file("auto", "auto", "auto")
	laptop := newUp(t, home, UpRequest{Invite: nas.invite()})
	eventually(t, "all are up", func() bool {
		wishes := laptop.status().Wishes
		return len(wishes) == 3 && !slices.ContainsFunc(wishes, func(w WishStatus) bool { return w.State != stateUp })
	})
	for _, paths := range [][]any{
		{"auto", "relay", "auto"}, {"auto", "auto", "direct"}, {"relay", "auto", "auto"}, {"direct", "direct", "direct"}, {"relay", "relay", "relay"}, {"auto", "direct", "auto"},
	} {
		file(paths...)
		if r := laptop.reload(); len(r.Failed) > 0 {
			t.Fatalf("%v: %+v", paths, r)
		}
		kind, other := "relay", "direct"
		if slices.Contains(paths, any("direct")) {
			kind, other = other, kind
		}
		laptop.goBy(kind, 3)
		// Whose path it is tells the refusal of the other one.
		_, err := laptop.call(ConnectRequest{Name: "web", Local: "0", Path: other})
		if err == nil {
			t.Fatalf("%v: --path %s is not refused", paths, other)
		}
		i := 0
		for n, local := range []string{all, here} {
			if strings.HasSuffix(strings.Split(err.Error(), " goes to ")[0], ":"+port(t, local)) {
				i = n + 1
			}
		}
		if paths[i] != kind {
			t.Errorf("%v: %v", paths, err)
		}
	}
	file("relay", "direct", "auto") // at odds in itself
	if r := laptop.reload(); len(r.Failed) == 0 {
		t.Errorf("relay and direct: %+v", r)
	}
	for _, f := range laptop.status().Forwards {
		if port(t, f.Local) == port(t, all) && f.Local != all {
			t.Errorf("asked for %s, it listens at %s", all, f.Local)
		}
	}
	for _, word := range []string{all, here} {
		laptop.must(DisconnectRequest{Local: word})
	}
	command, _ := laptop.hold(ConnectRequest{Name: "web", Local: here}, "listening")
	if command.Local == here {
		t.Fatalf("it is told as asked for: %s", here)
	}
	laptop.must(DisconnectRequest{Local: here})
	if left := laptop.status().Forwards; len(left) != 1 {
		t.Errorf("left is %+v", left)
	}
}

func TestAFolderThatComesLaterIsWatched(t *testing.T) {
	_, first := newRelay(t)
	home := newHome(t)
	folder := filepath.Join(home.State, "not", "yet")
	home.Config = filepath.Join(folder, "fwd.toml")
	nas := newUp(t, home, UpRequest{Invite: first})
	for _, name := range []string{"one", "two"} { // the second time the folder goes and comes
		if err := os.RemoveAll(filepath.Dir(folder)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, home.Config, "[[expose]]\ntarget = 'localhost:9'\nname = %q\n", name)
		nas.wishIs("expose "+name, stateUp)
	}
}

func TestAWishThatFailsIsTriedAgain(t *testing.T) {
	relay, first := newRelay(t)
	home := newHome(t)
	local := filepath.Join(home.State, "l.sock")
	write(t, home.Config, "[[connect]]\nservice = 'late'\nlocal = 'unix:%s'\n", local)
	laptop := newUp(t, home, UpRequest{})
	key := "connect late at unix:" + local
	laptop.wishIs(key, stateFailing) // in no network

	laptop.must(JoinRequest{Invite: first})
	eventually(t, "the name is unknown", func() bool { return strings.Contains(laptop.wish(key).Error, `no service "late"`) })
	target := filepath.Join(home.State, "t.sock")
	echo(t, "unix", target)
	relay.hold(ExposeRequest{Target: "unix:" + target, Name: "late"}, "exposed")
	laptop.wishIs(key, stateUp)
	newTalk(t, "unix", local).say("from socket to socket")
}

func TestKeptWishesOutliveTheirTerminalAndTheDaemon(t *testing.T) {
	_, first := newRelay(t)
	home := newHome(t)
	target := echo(t, "tcp", "127.0.0.1:0")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Up(ctx, home, UpRequest{Invite: first}, func(Event) {}) }()
	nas := &machine{t, home}
	eventually(t, "fwd up has joined", func() bool {
		_, err := nas.call(PeersRequest{})
		return err == nil
	})

	// The command ends, the service stays.
	events := nas.must(ExposeRequest{Target: target, Name: "nas", Keep: true})
	if !slices.ContainsFunc(events, func(e Event) bool { return e.Event == "exposed" }) {
		t.Errorf("expose --keep says %+v", events)
	}
	nas.must(ExposeRequest{Target: target, Name: "other", Keep: true})
	if _, err := nas.call(ExposeRequest{Target: "unix:relative", Keep: true}); failureOf(err).Exit != ExitUsage {
		t.Errorf("a mistake is kept: %v", err)
	}
	if s := nas.status(); len(s.Services) != 2 || s.Services[0].From != fromKept || len(s.Wishes) != 2 {
		t.Errorf("status is %+v %+v", s.Services, s.Wishes)
	}
	nas.must(UnexposeRequest{Name: "other"})
	stop()
	await(t, ended, "fwd up's end")

	// Kept by a command that holds it itself, where fwd up does not run.
	back := make(chan struct{})
	ctx, stop = context.WithCancel(context.Background())
	go func() { ended <- run(ctx, home, options{ready: func() { close(back) }}) }()
	await(t, back, "a background daemon")
	_, end := nas.hold(ExposeRequest{Target: target, Name: "third", Keep: true}, "exposed")
	end()
	eventually(t, "it ends with its terminal", func() bool { return len(nas.status().Services) == 0 })
	stop()
	await(t, ended, "the background daemon's end")

	// Without a daemon it can be taken back.
	if found, err := Forget(home, UnexposeRequest{Name: "other"}); found || err != nil {
		t.Errorf("other was not taken back: %v, %v", found, err)
	}
	up := newUp(t, home, UpRequest{})
	up.wishIs("expose nas", stateUp)
	up.wishIs("expose third", stateUp)
	up.must(UnexposeRequest{Name: "third"})
	eventually(t, "one is left", func() bool { return len(up.status().Wishes) == 1 && len(up.status().Services) == 1 })
}

func TestUnexposeOfTheFilesOwnLastsUntilItIsReadAgain(t *testing.T) {
	_, first := newRelay(t)
	home := newHome(t)
	write(t, home.Config, "[[expose]]\ntarget = 'localhost:9'\nname = 'nas'\n")
	nas := newUp(t, home, UpRequest{Invite: first})
	nas.wishIs("expose nas", stateUp)
	events := nas.must(UnexposeRequest{Name: "nas"})
	if len(events) != 1 || !strings.Contains(events[0].Message, "fwd.toml still has it") {
		t.Errorf("unexpose says %d events", len(events))
	}
	nas.wishIs("expose nas", stateEnded)
	if _, err := nas.call(ExposeRequest{Target: "localhost:8", Name: "nas", Keep: true}); err != nil {
		t.Errorf("its name is not free: %v", err)
	}
	nas.must(UnexposeRequest{Name: "nas"})
	nas.reload()
	nas.wishIs("expose nas", stateUp)
}

// A link ends when its machine's own time is over: a service cannot have more, and says so.
func TestNoServicePromisesALongerHoldThanItsMachineHas(t *testing.T) {
	home := newHome(t)
	newOrphans(t, time.Hour).admit(home, "nas-box", identity.InviteOptions{})
	file := "[limits]\nhold = '2d'\n[[expose]]\ntarget = 'localhost:9'\nname = 'nas'\nhold = '36h'\n"
	write(t, home.Config, "%s", file)
	nas := newUp(t, home, UpRequest{})
	nas.wishIs("expose nas", stateUp)
	nas.hold(ExposeRequest{Target: "localhost:9", Name: "most", Hold: 48 * time.Hour}, "exposed")
	_, err := nas.call(ExposeRequest{Target: "localhost:9", Name: "more", Hold: 49 * time.Hour})
	if f := failureOf(err); f.Exit != ExitUsage || !strings.Contains(f.What, "--hold 49h") || !strings.Contains(f.What, "longer than 48h") || !strings.Contains(f.Hint, "[limits]") {
		t.Errorf("more than the machine has: %+v", f)
	}
	// [limits] is read at the start alone.
	write(t, home.Config, "%s", strings.NewReplacer("2d", "4d", "36h", "3d").Replace(file))
	if r := nas.reload(); len(r.Failed) != 1 || !strings.Contains(r.Failed[0], "longer than 48h") || !slices.Contains(r.Restart, "limits") {
		t.Errorf("more than the machine has until it is started again: %+v", r)
	}

	_, err = newMachine(t).call(ExposeRequest{Target: "localhost:9", Hold: 25 * time.Hour})
	if f := failureOf(err); f.Exit != ExitUsage || !strings.Contains(f.What, "longer than 24h") {
		t.Errorf("more than the default: %+v", f)
	}
}

func TestUpJoinsByTheFilesInvite(t *testing.T) {
	_, first := newRelay(t)
	home := newHome(t)
	write(t, filepath.Join(home.State, "code"), "%s\n", first)
	write(t, home.Config, "name = 'attic'\ninvite_file = 'code'\n")
	m := newUp(t, home, UpRequest{})
	eventually(t, "it has joined by its name", func() bool { return m.status().Name == "attic" })

	bad := newHome(t)
	write(t, bad.Config, "invite_file = 'code'\n")
	err := Up(t.Context(), bad, UpRequest{}, func(Event) {})
	if failureOf(err).Exit != ExitUsage {
		t.Errorf("without the file: %v", err)
	}
	err = Up(t.Context(), newHome(t), UpRequest{Invite: "fwd1nonsense"}, func(Event) {})
	if failureOf(err).Exit != ExitRefused {
		t.Errorf("with a bad invite: %v", err)
	}
	err = Up(t.Context(), newHome(t), UpRequest{Config: filepath.Join(home.State, "none.toml")}, func(Event) {})
	if failureOf(err).Exit != ExitUsage {
		t.Errorf("with a configuration that is not there: %v", err)
	}
}

func TestTheFileMakesARelay(t *testing.T) {
	home := newHome(t)
	port := freePort(t)
	write(t, home.Config, "name = 'vps'\n[relay]\nlisten = ['127.0.0.1:%s']\nannounce = ['127.0.0.1']\nuses = 3\nmonthly = '1GB'\n", port)
	invites := make(chan string, 1)
	m := &machine{t, home}
	m.run(func(ctx context.Context) error {
		return Up(ctx, home, UpRequest{}, func(e Event) {
			if e.Event == "invite" {
				invites <- e.Invite
			}
		})
	})
	laptop := newMachine(t)
	laptop.must(JoinRequest{Invite: await(t, invites, "the first invite"), As: "laptop"})
	if s := m.status(); s.Relaying == nil || s.Name != "vps" {
		t.Errorf("status is %+v", s)
	}
	write(t, home.Config, "name = 'vps'\n[relay]\nlisten = ['127.0.0.1:%s']\nannounce = ['127.0.0.2']\n", port)
	if r := m.reload(); !slices.Equal(r.Restart, []string{"relay"}) {
		t.Errorf("reload says %+v", r)
	}
}

func TestAKeptRelayRelaysUnderUp(t *testing.T) {
	home := newHome(t)
	port := freePort(t)
	ctx, stop := context.WithCancel(context.Background())
	ended, up := make(chan error, 1), make(chan struct{})
	go func() {
		request := RelayRequest{Listen: []string{"127.0.0.1:" + port}, Announce: []string{"127.0.0.1"}, Name: "vps", Keep: true}
		ended <- Run(ctx, home, request, func(e Event) {
			if e.Event == "relay" {
				close(up)
			}
		})
	}()
	await(t, up, "the relay")
	stop()
	await(t, ended, "its end")

	ctx, stop = context.WithCancel(context.Background())
	go func() { ended <- Up(ctx, home, UpRequest{}, func(Event) {}) }()
	m := &machine{t, home}
	eventually(t, "it relays", func() bool {
		c, err := Dial(ctx, home)
		if err != nil {
			return false
		}
		c.Close()
		s := m.status()
		return s.Relaying != nil && s.Name == "vps"
	})
	stop()
	await(t, ended, "fwd up's end")

	if err := ForgetRelay(home); err != nil {
		t.Fatal(err)
	}
	if s := newUp(t, home, UpRequest{}).status(); s.Relaying != nil {
		t.Errorf("a relay that was taken back: %+v", s.Relaying)
	}
}

func TestStandardInputAndOutputOfAMachineIsItsSSH(t *testing.T) {
	_, first := newRelay(t)
	nas, laptop := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"})
	nas.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "ssh"}, "exposed")
	for _, name := range []string{"nas-box", "nas-box.fwd", "ssh.nas-box", "ssh"} {
		c, err := Dial(t.Context(), laptop.home)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := c.Stream(t.Context(), ConnectRequest{Name: name, Local: "-"}, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		(&talk{t, conn, bufio.NewReader(conn)}).say("hello")
		conn.Close()
	}
	if _, err := laptop.call(ConnectRequest{Name: "nas-box", Local: "0"}); failureOf(err).Exit != ExitUnknownName {
		t.Errorf("with a port of its own a machine's name means nothing: %v", err)
	}
}

// A client that goes has its session ended, also when it has nothing more to say and the far side says nothing.
func TestASessionOverStandardInputEndsWithItsCommand(t *testing.T) {
	_, first := newRelay(t)
	nas, laptop := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"})
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	nas.hold(ExposeRequest{Target: silent.Addr().String(), Name: "idle"}, "exposed")
	for _, half := range []bool{false, true} {
		for _, end := range []string{"client", "disconnect"} {
			c, err := Dial(t.Context(), laptop.home)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := c.Stream(t.Context(), ConnectRequest{Name: "idle", Local: "-"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			conn.Write([]byte("x"))
			if half {
				conn.(*framed).CloseWrite()
			}
			target, err := silent.Accept()
			if err != nil {
				t.Fatal(err)
			}
			target.SetDeadline(time.Now().Add(patience))
			for n, err := 0, error(nil); err == nil && (half || n == 0); {
				n, err = target.Read(make([]byte, 1)) // as far as it was sent
			}
			if end == "client" {
				conn.Close()
			} else {
				laptop.must(DisconnectRequest{Local: "idle"})
			}
			eventually(t, fmt.Sprintf("the session's end (half-closed %v, ended by %s)", half, end), func() bool {
				s := laptop.status()
				return len(s.Sessions)+len(s.Forwards) == 0
			})
			conn.Close()
			target.Close()
		}
	}
}

// A command that gives up while its session still waits for the machine leaves nothing behind.
func TestGivingUpOnAMachineThatIsOffEndsTheWish(t *testing.T) {
	_, first := newRelay(t)
	nas, laptop := newMachine(t), newLingering(t, lingerAfterLastWish)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"})
	nas.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "ssh"}, "exposed")
	laptop.must(PingRequest{Name: "nas-box", Count: 1})
	nas.must(StopRequest{})
	c, err := Dial(t.Context(), laptop.home)
	if err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancel(t.Context())
	if _, err := c.Stream(ctx, ConnectRequest{Name: "nas-box", Local: "-"}, func(Event) { giveUp() }); err == nil {
		t.Fatal("a machine that is off was reached")
	}
	eventually(t, "the daemon is idle", func() bool {
		_, err := laptop.call(StopRequest{IfIdle: true})
		return err == nil
	})
}

// The port that the file names is used or refused, never another one.
func TestThePortOfTheConfigIsUsedOrRefused(t *testing.T) {
	home, port := newHome(t), freePort(t)
	write(t, home.Config, "port = %s\n", port)
	taken, err := net.ListenPacket("udp4", "0.0.0.0:"+port)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, Up(t.Context(), home, UpRequest{}, func(Event) {}), "local-port")
	taken.Close()
	m := newUp(t, home, UpRequest{})
	if _, err := net.ListenPacket("udp4", "0.0.0.0:"+port); err == nil {
		t.Error("it listens elsewhere")
	}
	write(t, home.Config, "port = %s\nannounce = [\"nas.example.org\"]\n", port)
	if r := m.reload(); !slices.Equal(r.Restart, []string{"announce"}) {
		t.Errorf("%+v", r)
	}
}
