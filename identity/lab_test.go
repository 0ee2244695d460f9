package identity

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// t0 is noon of the day on which each test begins.
var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var errDisk = errors.New("disk full")

// machine is a peer: its key, its ID, its book.
type machine struct {
	key  crypto.PrivKey
	id   peer.ID
	book *Book
}

// testKey gives the same key for the same name, so that failures repeat.
func testKey(t testing.TB, name string) (crypto.PrivKey, peer.ID) {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

func newMachine(t testing.TB, name string) *machine {
	t.Helper()
	key, id := testKey(t, name)
	book, err := OpenBook(filepath.Join(t.TempDir(), "roster"))
	if err != nil {
		t.Fatal(err)
	}
	return &machine{key, id, book}
}

// network is an owner called "vps" on its own disk.
type network struct {
	*machine
	dir   string
	owner *Owner
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	m := newMachine(t, "vps")
	n := &network{machine: m, dir: filepath.Dir(m.book.path)}
	var err error
	if n.owner, err = CreateNetwork(n.dir, m.book, "home", m.id, "vps", Member|Relay|Admin, t0); err != nil {
		t.Fatal(err)
	}
	return n
}

// join lets a new machine in by an invite of its own.
func (n *network) join(t testing.TB, name string, opts InviteOptions) *machine {
	t.Helper()
	m := newMachine(t, name)
	n.joinAs(t, m, name, opts)
	return m
}

func (n *network) joinAs(t testing.TB, m *machine, name string, opts InviteOptions) string {
	t.Helper()
	invite, err := n.owner.Invite(opts, t0)
	if err != nil {
		t.Fatal(err)
	}
	s, given, err := n.use(t, invite, m, name, t0)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.book.Join(s); err != nil {
		t.Fatal(err)
	}
	return given
}

// use carries a request to the owner and the reply back.
func (n *network) use(t testing.TB, invite Invite, m *machine, name string, now time.Time) (*Sealed, string, error) {
	t.Helper()
	request, finish, err := invite.Request(m.key, name)
	if err != nil {
		t.Fatal(err)
	}
	reply, _ := n.owner.Join(request, m.id, now)
	return finish(reply)
}

// revoke is Owner.Revoke, for tests that do not ask which invites end.
func (n *network) revoke(p peer.ID) error {
	_, err := n.owner.Revoke(p, t0)
	return err
}

// restart opens the owner's files anew.
func (n *network) restart(t testing.TB) {
	t.Helper()
	var err error
	if n.book, err = OpenBook(n.book.path); err != nil {
		t.Fatal(err)
	}
	if n.owner, err = OpenOwner(n.dir, n.book, n.id); err != nil {
		t.Fatal(err)
	}
	if n.owner == nil {
		t.Fatal("the owner is gone")
	}
}

func addrs(t testing.TB, texts ...string) (list []ma.Multiaddr) {
	t.Helper()
	for _, s := range texts {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	return list
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

func fullDisk(string, []byte, os.FileMode) error { return errDisk }
