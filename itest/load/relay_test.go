//go:build linux

package load

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/identity"
	"fwd/itest/fwdtest"
)

// Each machine is a libp2p host of this process that has joined: 500 whole ones would want 20 GiB.
func TestReservationsFromOneAddress(t *testing.T) {
	if !*load {
		t.Skip("runs only with -load")
	}
	relay := &alone{t: t, home: shortTemp(t)}
	keys := relay.found(*peers)
	const at = "127.0.0.1:14001"
	relay.start("relay", "--listen", at, "--announce", at)
	id, err := peer.Decode(relay.Status().Peer)
	if err != nil {
		t.Fatal(err)
	}
	info := peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/14001")}}
	before := use(relay)
	t.Logf("at rest: %v", before)

	hosts := make([]host.Host, *peers)
	for i := range hosts {
		h, err := libp2p.New(libp2p.Identity(keys[i]), libp2p.NoListenAddrs, libp2p.EnableRelay(), libp2p.DisableMetrics(),
			libp2p.ResourceManager(&network.NullResourceManager{}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		hosts[i] = h
	}
	began := time.Now()
	each(t, len(hosts), func(i int) error {
		ctx, cancel := context.WithTimeout(context.Background(), fwdtest.Limit)
		defer cancel()
		if err := hosts[i].Connect(ctx, info); err != nil {
			return err
		}
		_, err := client.Reserve(ctx, hosts[i], info)
		return err
	})
	t.Logf("%d reserved in %v", len(hosts), time.Since(began).Round(time.Millisecond))
	now := use(relay)
	s := relay.Status()
	t.Logf("with %d reservations: %v, each %d KiB", s.Relaying.Reservations, now, (now.rss-before.rss)/1024/int64(len(hosts)))
	if s.Relaying.Reservations < len(hosts) {
		t.Errorf("%d reservations of %d", s.Relaying.Reservations, len(hosts))
	}
	// Each reaches its neighbour through the relay.
	began = time.Now()
	each(t, len(hosts)/2, func(i int) error {
		ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(context.Background(), "load"), fwdtest.Limit)
		defer cancel()
		a, b := hosts[2*i], hosts[2*i+1]
		circuit := info.Addrs[0].Encapsulate(ma.StringCast(fmt.Sprintf("/p2p/%s/p2p-circuit", info.ID)))
		return a.Connect(ctx, peer.AddrInfo{ID: b.ID(), Addrs: []ma.Multiaddr{circuit}})
	})
	now = use(relay)
	t.Logf("%d circuits in %v: %v", relay.Status().Relaying.Circuits, time.Since(began).Round(time.Millisecond), now)
	for _, h := range hosts {
		h.Close()
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Second) {
		now = use(relay)
		if now.goroutines <= before.goroutines+50 && now.descriptors <= before.descriptors+20 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("a minute after all have gone: %v", now)
			break
		}
	}
	t.Logf("afterwards: %v", now)
}

// each runs f(0) to f(n-1), 16 at a time; any failure is fatal.
func each(t *testing.T, n int, f func(int) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make(chan error, n)
	work := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range work {
				if err := f(i); err != nil {
					errs <- err
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
	if len(errs) > 0 {
		t.Fatalf("%d of %d failed, the first: %v", len(errs), n, <-errs)
	}
}

// alone is one fwd without a lab: the hosts of this process dial from its own namespace.
type alone struct {
	t    *testing.T
	home string
}

func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fwd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// found makes a network of n members in the home, and returns their keys. By joining, so many would take minutes:
// strangers at one address are paced.
func (a *alone) found(n int) (keys []crypto.PrivKey) {
	a.t.Helper()
	must := func(err error) {
		if err != nil {
			a.t.Fatal(err)
		}
	}
	key, _, err := identity.LoadOrCreateKey(filepath.Join(a.home, "identity.key"))
	must(err)
	self, err := peer.IDFromPrivateKey(key)
	must(err)
	book, err := identity.OpenBook(filepath.Join(a.home, "roster"))
	must(err)
	owner, err := identity.CreateNetwork(a.home, book, "home", self, "relay", identity.Member|identity.Relay|identity.Admin, time.Now())
	must(err)
	invite, err := owner.Invite(identity.InviteOptions{Uses: n}, time.Now())
	must(err)
	for i := range n {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		must(err)
		request, _, err := invite.Request(key, fmt.Sprintf("m%d", i))
		must(err)
		_, err = owner.Join(request, "", time.Now())
		must(err)
		keys = append(keys, key)
	}
	return keys
}

func (a *alone) command(args ...string) *exec.Cmd {
	cmd := exec.Command(fwdtest.Binary(a.t), args...)
	cmd.Env = append(os.Environ(), "FWD_HOME="+a.home, "NO_COLOR=1")
	return cmd
}

// start starts a command that goes on, and waits until its daemon answers.
func (a *alone) start(args ...string) {
	a.t.Helper()
	cmd := a.command(args...)
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	for deadline := time.Now().Add(fwdtest.Limit); a.command("status").Run() != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			a.t.Fatal("fwd did not start")
		}
	}
}

func (a *alone) Must(args ...string) string {
	a.t.Helper()
	out, err := a.command(args...).Output()
	if err != nil {
		a.t.Fatalf("fwd %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

func (a *alone) Status() (s fwdtest.Status) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(a.Must("status", "--json")), &s); err != nil {
		a.t.Fatal(err)
	}
	return s
}
