package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/identity"
)

// A network whose owner has been away for a while: each machine holds the roster of that time.
type orphans struct {
	t     *testing.T
	owner *identity.Owner
	left  time.Time
}

func newOrphans(t *testing.T, away time.Duration) *orphans {
	t.Helper()
	dir, left := t.TempDir(), time.Now().Add(-away)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key, _, err := identity.LoadOrCreateKey(filepath.Join(dir, "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	owner, err := identity.CreateNetwork(dir, newBook(t, dir), "home", idOf(t, key), "owner", identity.Member|identity.Admin, left)
	if err != nil {
		t.Fatal(err)
	}
	return &orphans{t, owner, left}
}

func newBook(t *testing.T, dir string) *identity.Book {
	t.Helper()
	book, err := identity.OpenBook(filepath.Join(dir, "roster"))
	if err != nil {
		t.Fatal(err)
	}
	return book
}

// admit puts the machine of that home on the roster, and the roster into the home.
func (o *orphans) admit(home Home, name string, opt identity.InviteOptions) {
	o.t.Helper()
	key, _, err := identity.LoadOrCreateKey(home.file("identity.key"))
	if err != nil {
		o.t.Fatal(err)
	}
	invite, err := o.owner.Invite(opt, o.left)
	if err != nil {
		o.t.Fatal(err)
	}
	request, finish, err := invite.Request(key, name)
	if err != nil {
		o.t.Fatal(err)
	}
	reply, err := o.owner.Join(request, "", o.left)
	if err != nil {
		o.t.Fatal(err)
	}
	sealed, _, err := finish(reply)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := newBook(o.t, home.State).Join(sealed); err != nil {
		o.t.Fatal(err)
	}
}

func idOf(t *testing.T, key crypto.PrivKey) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAStrictMachineLetsNothingNewInWhileTheOwnerIsSilent(t *testing.T) {
	o := newOrphans(t, 73*time.Hour)
	homes := map[string]Home{}
	for _, name := range []string{"relay", "laptop", "strict", "lax"} {
		homes[name] = newHome(t)
	}
	port := freePort(t)
	var at []ma.Multiaddr
	for _, s := range []string{"/ip4/127.0.0.1/udp/" + port + "/quic-v1", "/ip4/127.0.0.1/tcp/" + port} {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, a)
	}
	for _, name := range []string{"laptop", "strict", "lax", "relay"} { // the last one's roster names all
		opt := identity.InviteOptions{}
		if name == "relay" {
			opt.Caps, opt.At = identity.Relay, at
		}
		o.admit(homes[name], name, opt)
	}
	write(t, homes["relay"].Config, "[relay]\nlisten = [%q]\nannounce = [%[1]q]\n", "127.0.0.1:"+port)
	target := reverser(t)
	write(t, homes["strict"].Config, "strict = true\n[[expose]]\ntarget = %q\nname = \"s\"\n", target)
	write(t, homes["lax"].Config, "[[expose]]\ntarget = %q\nname = \"l\"\n", target)
	// They met the relay before it all happened: its roster is the newest.
	for _, name := range []string{"laptop", "strict", "lax"} {
		data, err := os.ReadFile(homes["relay"].file("roster"))
		if err == nil {
			err = os.WriteFile(homes[name].file("roster"), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	newUp(t, homes["relay"], UpRequest{})
	strict, _ := newUp(t, homes["strict"], UpRequest{}), newUp(t, homes["lax"], UpRequest{})
	laptop := newUp(t, homes["laptop"], UpRequest{})

	laptop.hold(ConnectRequest{Name: "l.lax", Local: "127.0.0.1:0", Timeout: patience}, "listening")
	_, err := laptop.call(ConnectRequest{Name: "s.strict", Local: "127.0.0.1:0", Timeout: patience})
	wantCode(t, err, "refused")
	if w := strings.Join(strict.status().Warnings, " "); !strings.Contains(w, "3 days") || !strings.Contains(w, "strict") || !strings.Contains(w, "owner-silent") {
		t.Errorf("it warns: %q", w)
	}

	// Without a restart, as every key that says who may come in.
	write(t, homes["strict"].Config, "[[expose]]\ntarget = %q\nname = \"s\"\n", target)
	strict.must(ReloadRequest{})
	laptop.hold(ConnectRequest{Name: "s.strict", Local: "127.0.0.1:0", Timeout: patience}, "listening")
}
