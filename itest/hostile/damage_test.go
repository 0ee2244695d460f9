//go:build linux

package hostile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fwd/identity"
	"fwd/itest/fwdtest"
)

// The rest is not malice but damage: kills, disks, files, modes, descriptors.

// The owner is killed again and again while machines join. Each time it comes back with its key and
// at least the roster that anybody has seen, and an invite for one lets in one.
func TestKillsAtAnyMomentLoseNothingAndLetNobodyInTwice(t *testing.T) {
	t.Parallel()
	owner := newMachine(t)
	port := fwdtest.FreePort(t)
	at := fmt.Sprintf("127.0.0.1:%d", port)
	w := &world{t: t, relay: owner, relayPort: port}
	up := func() *exec.Cmd {
		_, cmd := owner.process("relay", "relay", "--listen", at, "--announce", at, "--as", "owner")
		return cmd
	}
	cmd := up()
	self, epoch := owner.status().Peer, uint64(0)
	for round := range 6 {
		code := w.invite()
		joiners := []*attacker{newBare(t, 180+2*round), newBare(t, 181+2*round)}
		try := func() (in int) {
			var mu sync.Mutex
			var all sync.WaitGroup
			for _, a := range joiners {
				all.Go(func() {
					if a.tryJoin(t, w, code) == nil {
						mu.Lock()
						in++
						mu.Unlock()
					}
				})
			}
			all.Wait()
			return in
		}
		kill := time.AfterFunc(time.Duration(rand.IntN(60))*time.Millisecond, func() { cmd.Process.Kill() })
		before := try()
		kill.Stop()
		cmd.Process.Kill()
		eventually(t, "the port is free", func() bool {
			l, err := net.Listen("tcp", at)
			if err == nil {
				l.Close()
			}
			return err == nil
		})
		cmd = up()
		eventually(t, "one is let in", func() bool { return try() > 0 }) // a dial just after a failed one is put off
		after := try()                                                   // who was let in before is let in again, and no other
		if before > 1 || after != 1 {
			t.Errorf("round %d: an invite for one let %d in before the kill and %d after", round, before, after)
		}
		s := owner.status()
		if s.Peer != self || s.Network.Epoch < epoch {
			t.Fatalf("round %d: peer %s at epoch %d, was %s at %d", round, s.Peer, s.Network.Epoch, self, epoch)
		}
		epoch = s.Network.Epoch
	}
	if list := owner.must("peers", "--json"); strings.Count(list, `"peer"`) != 7 {
		t.Errorf("6 invites and the owner make %d machines", strings.Count(list, `"peer"`))
	}
}

func newBare(t *testing.T, n int) *attacker {
	t.Helper()
	return newAttackerAt(t, n%250)
}

func (a *attacker) tryJoin(t *testing.T, w *world, code string) error {
	invite, err := identity.ParseInvite(code)
	if err != nil {
		t.Error(err)
		return err
	}
	request, finish, err := invite.Request(a.key, "joiner")
	if err != nil {
		return err
	}
	a.Network().ClosePeer(invite.Contact().ID)
	a.addrs[invite.Contact().ID] = invite.Contact().Addrs
	reply, err := a.ask(invite.Contact().ID, "/fwd/join/1", request)
	if err != nil {
		return err
	}
	_, _, err = finish(reply)
	return err
}

// Each state file empty, cut short, with a flipped bit, replaced by a folder, or open to others: it is named, with exit
// 2, and left as it is. Nothing is made in its place.
func TestDamagedFilesAreNamedAndKept(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.start("exposed", "expose", serveEcho(t), "--name", "data") // makes a network of its own
	m.must("invite")
	m.must("deny", "data", "tag:ops")
	m.must("stop")
	for _, name := range []string{"identity.key", "network.key", "roster", "daemon", "invites"} {
		path := filepath.Join(m.home, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(whole)
		flipped[len(flipped)/2] ^= 4
		renamed := bytes.Replace(whole, []byte(`"denied"`), []byte(`"denier"`), 1)
		for what, damaged := range map[string][]byte{"empty": {}, "cut": whole[:len(whole)/2], "flipped": flipped, "renamed": renamed} {
			if what == "flipped" && name == "daemon" || bytes.Equal(damaged, whole) {
				continue // a flipped digit of a port is a port
			}
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			_, code, stderr := m.run("peers")
			if code != 2 || !strings.Contains(stderr, path) {
				t.Errorf("%s, %s: exit %d, want 2 and the file's name\n%s", name, what, code, stderr)
			}
			if now, _ := os.ReadFile(path); !bytes.Equal(now, damaged) {
				t.Errorf("%s, %s: it was changed", name, what)
			}
		}
		os.Remove(path)
		os.Mkdir(path, 0o700)
		if _, code, stderr := m.run("peers"); code == 0 || !strings.Contains(stderr, path) {
			t.Errorf("%s is a folder: exit %d\n%s", name, code, stderr)
		}
		os.Remove(path)
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(m.home, 0o777)
	if _, code, stderr := m.run("peers"); code != 2 || !strings.Contains(stderr, "chmod 700") {
		t.Errorf("a home open to all: exit %d\n%s", code, stderr)
	}
	os.Chmod(m.home, 0o700)
	if os.Getuid() == 0 && os.Chown(m.home, 12345, 12345) == nil {
		if _, code, stderr := m.run("peers"); code != 2 || !strings.Contains(stderr, "chown") {
			t.Errorf("another user's home: exit %d\n%s", code, stderr)
		}
		os.Chown(m.home, 0, 0)
	}
	m.must("peers") // and mended it runs
}

// A full disk and one that has become read-only: nothing is given out that is not on disk, what runs goes on, and with
// room again all is well.
func TestFullAndReadOnlyDisksGiveNothingOut(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	if err := unix.Mount("tmpfs", m.home, "tmpfs", 0, "size=1m,mode=700"); err != nil {
		t.Skipf("no mounts here: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(m.home, unix.MNT_DETACH) })
	at := fmt.Sprintf("127.0.0.1:%d", fwdtest.FreePort(t))
	m.start("relay", "relay", "--listen", at, "--announce", at, "--as", "owner")
	before := m.status().Network.Epoch
	refused := func(how, word string) {
		t.Helper()
		for _, args := range [][]string{{"invite"}, {"rename", "owner", "other"}} {
			out, code, stderr := m.run(args...)
			if code == 0 || out != "" || !strings.Contains(stderr, word) {
				t.Errorf("%s: fwd %s: exit %d, printed %q\n%s", how, args[0], code, out, stderr)
			}
		}
		if now := m.status().Network.Epoch; now != before {
			t.Errorf("%s: epoch %d, was %d", how, now, before)
		}
	}
	fill := filepath.Join(m.home, "filler")
	f, err := os.Create(fill)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 16; size > 0; size /= 2 { // to the last byte
		for {
			if _, err := f.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
	f.Close()
	refused("full", "no space")
	os.Remove(fill)
	m.must("invite")
	if err := unix.Mount("", m.home, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err == nil {
		refused("read-only", "read-only")
		unix.Mount("", m.home, "", unix.MS_REMOUNT, "")
	}
	m.must("rename", "owner", "other")
}

// With 64 descriptors and more connections than that a relay neither spins nor dies, and serves again when they go.
func TestOutOfDescriptorsNeitherSpinsNorDies(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	port := fwdtest.FreePort(t)
	at := fmt.Sprintf("127.0.0.1:%d", port)
	_, cmd := m.processBy(func(c *exec.Cmd) *exec.Cmd {
		c.Args = append([]string{"sh", "-c", `ulimit -n 64; exec "$0" "$@"`, c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
		return c
	}, "relay", "relay", "--listen", at, "--announce", at, "--as", "owner")
	var conns []net.Conn
	for range 150 {
		if c, err := net.DialTimeout("tcp", at, time.Second); err == nil {
			conns = append(conns, c)
		}
	}
	used := cpuOf(cmd.Process.Pid)
	time.Sleep(2 * time.Second)
	if spent := cpuOf(cmd.Process.Pid) - used; spent > time.Second {
		t.Errorf("%v of CPU in 2 s without descriptors", spent)
	}
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "it answers again", func() bool { _, code, _ := m.run("status"); return code == 0 })
	w := &world{t: t, relay: m, relayPort: port}
	eventually(t, "it lets in again", func() bool { return newBare(t, 200).tryJoin(t, w, m.must("invite")) == nil })
}

func cpuOf(pid int) time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	var user, sys int64
	fmt.Sscan(f[11], &user)
	fmt.Sscan(f[12], &sys)
	return time.Duration(user+sys) * 10 * time.Millisecond
}

// A second daemon in one home, and a port that another program has: refused, by name.
func TestSecondDaemonAndStolenPortAreNamed(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	at := fmt.Sprintf("127.0.0.1:%d", fwdtest.FreePort(t))
	m.start("relay", "relay", "--listen", at, "--announce", at)
	if _, code, stderr := m.run("relay", "--listen", at, "--announce", at); code != 1 || !strings.Contains(stderr, m.home) {
		t.Errorf("a second daemon: exit %d\n%s", code, stderr)
	}
	if _, code, stderr := newMachine(t).run("relay", "--listen", at, "--announce", at); code == 0 || !strings.Contains(stderr, at) {
		t.Errorf("a stolen port: exit %d\n%s", code, stderr)
	}
	m.must("invite")
}
