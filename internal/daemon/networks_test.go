package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/identity"
)

// A club is a network with an invite, and what its joiner gets.
type club struct {
	code   string
	roster *identity.Sealed
}

func newClub(t *testing.T) club {
	t.Helper()
	dir := t.TempDir()
	key, _, err := identity.LoadOrCreateKey(filepath.Join(dir, "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	book, err := identity.OpenBook(filepath.Join(dir, "roster"))
	if err != nil {
		t.Fatal(err)
	}
	owner, err := identity.CreateNetwork(dir, book, "club", self, "vps", identity.Member, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	code, err := owner.Invite(identity.InviteOptions{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return club{code.String(), book.Current()}
}

// join puts the home on the club's roster, as its daemon would.
func (c club) join(t *testing.T, home Home) {
	t.Helper()
	book, err := identity.OpenBook(home.file("roster"))
	if err == nil {
		err = book.Join(c.roster)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhoIsInterruptedAfterJoiningHasTheNetworkByItsName(t *testing.T) {
	c, h := newClub(t), Home{State: shortTemp(t)}
	ctx, interrupt := context.WithCancel(t.Context())
	home, err := AddNetwork(ctx, h, c.code, func(home Home) (string, error) {
		c.join(t, home)
		interrupt()
		return "club", nil
	})
	if err != nil || home.Network != "club" {
		t.Errorf("it is called %q: %v", home.Network, err)
	}
	if _, found, _ := FindNetwork(h, "club"); !found {
		t.Error("-n club finds nothing")
	}
}

func TestWhoJoinsAgainHasTheNetworkByItsName(t *testing.T) {
	c, h := newClub(t), Home{State: shortTemp(t)}
	killed := errors.New("killed")
	_, err := AddNetwork(t.Context(), h, c.code, func(home Home) (string, error) {
		c.join(t, home)
		return "", killed
	})
	if !errors.Is(err, killed) {
		t.Fatal(err)
	}
	again := HomeFor(h, c.code)
	if again.Network == "" {
		t.Fatal("the network is not found again")
	}
	home, err := NameHome(t.Context(), h, again, "club")
	if err != nil || home.Network != "club" {
		t.Errorf("it is called %q: %v", home.Network, err)
	}
	if same, err := NameHome(t.Context(), h, home, "club"); err != nil || same != home {
		t.Errorf("named again, it is %+v: %v", same, err)
	}
}
