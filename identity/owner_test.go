package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestFoundedNetworkIsThereAfterARestart(t *testing.T) {
	n := newNetwork(t)
	laptop := n.join(t, "laptop", InviteOptions{})
	n.restart(t)
	if role := n.book.Current().Role(laptop.id); role != "member" {
		t.Fatalf("laptop is %q", role)
	}
	if role := n.book.Current().Role(n.id); role != "owner" {
		t.Fatalf("vps is %q", role)
	}
	_, err := CreateNetwork(n.dir, n.book, "other", n.id, "vps", Member, t0)
	wantErr(t, err, ErrJoined)

	elsewhere := newMachine(t, "elsewhere")
	_, err = CreateNetwork(n.dir, elsewhere.book, "other", elsewhere.id, "x", Member, t0)
	wantErr(t, err, fs.ErrExist)
	none, err := OpenOwner(t.TempDir(), elsewhere.book, elsewhere.id)
	if none != nil || err != nil {
		t.Fatalf("got %v, %v", none, err)
	}
}

func TestCrashWhileFoundingLeavesNoNetworkOrAWholeOne(t *testing.T) {
	m := newMachine(t, "vps")
	dir := filepath.Dir(m.book.path)
	m.book.write = fullDisk
	_, err := CreateNetwork(dir, m.book, "home", m.id, "vps", Member, t0)
	wantErr(t, err, errDisk)
	o, err := OpenOwner(dir, m.book, m.id)
	if o != nil || err != nil {
		t.Fatalf("half a network: %v, %v", o, err)
	}
	m.book.write = WriteFile
	if o, err = CreateNetwork(dir, m.book, "home", m.id, "vps", Member, t0); err != nil {
		t.Fatalf("the second attempt: %v", err)
	}

	// As if the power had failed between roster and key: the key has not got its name.
	must(t, os.Rename(filepath.Join(dir, networkKeyFile), filepath.Join(dir, stagedKeyFile)))
	again, err := OpenOwner(dir, m.book, m.id)
	must(t, err)
	if again == nil || again.Network() != o.Network() {
		t.Fatal("the network lost its key")
	}
	if _, err := os.Stat(filepath.Join(dir, networkKeyFile)); err != nil {
		t.Fatal(err)
	}
}

func TestCrashWhileTheOwnerMovesLeavesHomesThatOpen(t *testing.T) {
	n := newNetwork(t)
	next := n.join(t, "next", InviteOptions{})
	key, _, err := n.owner.Transfer(next.id, t0)
	must(t, err)
	dir := filepath.Dir(next.book.path)
	opens := func(dir string, m *machine) *Owner {
		book, err := OpenBook(m.book.path)
		must(t, err)
		o, err := OpenOwner(dir, book, m.id)
		must(t, err)
		return o
	}
	there := func(path ...string) bool {
		_, err := os.Stat(filepath.Join(path...))
		return err == nil
	}

	// The next owner has the key on its disk, and not the roster.
	next.book.write = fullDisk
	_, err = Succeed(dir, next.book, key, n.id, next.id, t0)
	wantErr(t, err, errDisk)
	if o := opens(dir, next); o != nil || there(dir, networkKeyFile) || there(dir, stagedKeyFile) {
		t.Fatal("it keeps the key of a network that another owns")
	}
	if opens(n.dir, n.machine) == nil {
		t.Fatal("the network has no owner")
	}
	next.book.write = WriteFile
	_, err = Succeed(dir, next.book, key, n.id, next.id, t0)
	must(t, err)
	if opens(dir, next) == nil {
		t.Fatal("the second attempt made no owner")
	}

	// The former owner has the roster on its disk, and its key has not been put aside.
	_, err = n.owner.Adopt(next.book.Current().Envelope, t0)
	wantErr(t, err, ErrMoved)
	if o := opens(n.dir, n.machine); o != nil || there(n.dir, networkKeyFile) || there(n.dir, ledgerFile) {
		t.Fatal("it still holds what an owner does")
	}
	if !there(n.dir, "network-"+string(next.book.Current().Network)+".key") {
		t.Fatal("the key was not put aside but deleted")
	}
}

func TestAnOwnerWithoutItsOwnKeyKeepsTheNetworks(t *testing.T) {
	n := newNetwork(t)
	_, another := testKey(t, "the identity made when the first was lost")
	_, err := OpenOwner(n.dir, n.book, another)
	wantErr(t, err, ErrMoved)
	n.restart(t) // with its identity back, all is as before
}

func TestFailedWriteChangesNothingForTheOwner(t *testing.T) {
	n := newNetwork(t)
	laptop, desk := n.join(t, "laptop", InviteOptions{}), n.join(t, "desk", InviteOptions{})
	invite, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	before := n.book.Current()

	n.book.write, n.owner.write = fullDisk, WriteFile
	wantErr(t, n.revoke(laptop.id), errDisk)
	wantErr(t, n.owner.ClaimService(laptop.id, "nas", t0), errDisk)
	newcomer := newMachine(t, "newcomer")
	_, _, err = n.use(t, invite, newcomer, "newcomer", t0)
	wantErr(t, err, ErrOwnerFailed)
	if n.book.Current() != before {
		t.Fatal("a roster that is not on disk counts")
	}

	n.book.write, n.owner.write = WriteFile, fullDisk
	_, err = n.owner.Invite(InviteOptions{}, t0)
	wantErr(t, err, errDisk)
	wantErr(t, n.revoke(desk.id), errDisk)
	if n.book.Current() != before {
		t.Fatal("a roster was signed without its ledger")
	}

	// The disk is back: the same peer finishes its use of the invite, no other takes it.
	n.restart(t)
	_, _, err = n.use(t, invite, newMachine(t, "thief"), "thief", t0)
	wantErr(t, err, ErrInviteUsed)
	s, _, err := n.use(t, invite, newcomer, "newcomer", t0)
	must(t, err)
	if _, ok := s.Entry(newcomer.id); !ok {
		t.Fatal("not on the roster")
	}
}

func TestRevokeTakesEverythingAndChangesTheDiscoveryKey(t *testing.T) {
	n := newNetwork(t)
	must(t, n.owner.SetRelay(RelayInfo{n.id, addrs(t, "/ip4/192.0.2.1/tcp/4001")}, t0))
	relay := n.join(t, "relay2", InviteOptions{Caps: Relay | Expose})
	must(t, n.owner.SetRelay(RelayInfo{relay.id, addrs(t, "/ip4/192.0.2.2/tcp/4001")}, t0))
	must(t, n.owner.ClaimService(relay.id, "nas", t0))
	before := n.book.Current()

	must(t, n.revoke(relay.id))
	after := n.book.Current()
	if _, ok := after.Entry(relay.id); ok || len(after.Relays) != 1 || len(after.Services) != 0 {
		t.Fatalf("something is left: %+v", after.Roster)
	}
	if bytes.Equal(after.DiscoveryKey, before.DiscoveryKey) || !bytes.Equal(after.OldDiscoveryKeys[0], before.DiscoveryKey) {
		t.Fatal("the discovery key was not changed, or the old one forgotten")
	}
	if after.Epoch != before.Epoch+1 {
		t.Fatalf("epoch %d after %d", after.Epoch, before.Epoch)
	}
	wantErr(t, n.revoke(relay.id), ErrUnknownName)
	wantErr(t, n.revoke(n.id), ErrNotAllowed)

	for i := range 10 {
		m := n.join(t, fmt.Sprint("m", i), InviteOptions{})
		must(t, n.revoke(m.id))
	}
	if got := len(n.book.Current().OldDiscoveryKeys); got != maxOldDiscoveryKeys {
		t.Fatalf("%d old discovery keys", got)
	}
}

func TestRevokedPeerCannotComeBackByItsInvite(t *testing.T) {
	n := newNetwork(t)
	invite, err := n.owner.Invite(InviteOptions{Uses: 2}, t0)
	must(t, err)
	laptop := newMachine(t, "laptop")
	_, _, err = n.use(t, invite, laptop, "laptop", t0)
	must(t, err)
	must(t, n.revoke(laptop.id))
	n.restart(t)
	_, _, err = n.use(t, invite, laptop, "laptop", t0)
	wantErr(t, err, ErrInviteRevoked)
}

func TestRevokeEndsTheInviteThatTheMachineCameBy(t *testing.T) {
	n := newNetwork(t)
	fleet, err := n.owner.Invite(InviteOptions{Uses: 5}, t0)
	must(t, err)
	others, err := n.owner.Invite(InviteOptions{Uses: 5}, t0)
	must(t, err)
	stolen, kept, left := newMachine(t, "stolen"), newMachine(t, "kept"), newMachine(t, "left")
	for m, invite := range map[*machine]Invite{stolen: fleet, kept: fleet, left: others} {
		_, _, err := n.use(t, invite, m, "box", t0)
		must(t, err)
	}

	ended, err := n.owner.Revoke(stolen.id, t0)
	must(t, err)
	if len(ended) != 1 || ended[0].ID != fleet.ID() || ended[0].Uses-len(ended[0].Used) != 3 {
		t.Fatalf("said to have ended: %+v", ended)
	}
	n.restart(t)
	_, _, err = n.use(t, fleet, newMachine(t, "the thief's next key"), "box", t0)
	wantErr(t, err, ErrInviteUsed)
	_, _, err = n.use(t, fleet, kept, "box", t0) // whoever belongs is no thief
	must(t, err)

	must(t, n.owner.Leave(left.id, t0)) // by its own wish
	_, _, err = n.use(t, others, newMachine(t, "next"), "box", t0)
	must(t, err)
}

func TestServiceNameBelongsToTheFirst(t *testing.T) {
	n := newNetwork(t)
	a, b := n.join(t, "a", InviteOptions{}), n.join(t, "b", InviteOptions{})
	guest := n.join(t, "guest", InviteOptions{Only: []Grant{{"nas", a.id}}})
	must(t, n.owner.ClaimService(a.id, "nas", t0))
	epoch := n.book.Current().Epoch
	must(t, n.owner.ClaimService(a.id, "nas", t0))
	if n.book.Current().Epoch != epoch {
		t.Fatal("a claim that changes nothing made a new epoch")
	}
	wantErr(t, n.owner.ClaimService(b.id, "nas", t0), ErrNameTaken)
	wantErr(t, n.owner.ClaimService(guest.id, "web", t0), ErrNotAllowed)
	wantErr(t, n.owner.ClaimService(b.id, "a", t0), ErrNameTaken) // `ssh a.fwd` would lead to b
	must(t, n.owner.ClaimService(a.id, "a", t0))
	must(t, n.owner.ReleaseService(a.id, "a", t0))
	if err := n.owner.ClaimService(b.id, "a.b", t0); err == nil {
		t.Fatal("a name with a dot was given out")
	}
	wantErr(t, n.owner.ReleaseService(b.id, "nas", t0), ErrNotAllowed)
	must(t, n.owner.ReleaseService(a.id, "nas", t0))
	must(t, n.owner.ClaimService(b.id, "nas", t0))
	must(t, n.owner.ReleaseService("", "nas", t0))
	for i := range maxNamesPerPeer {
		_, err := n.owner.Update(t0, func(r *Roster) error { r.Services[fmt.Sprint("s", i)] = b.id; return nil })
		must(t, err)
	}
	wantErr(t, n.owner.ClaimService(b.id, "one-more", t0), ErrTooLarge)
}

func TestRenameKeepsNamesUnique(t *testing.T) {
	n := newNetwork(t)
	a := n.join(t, "a", InviteOptions{})
	must(t, n.owner.Rename(a.id, "desk", t0))
	if e, ok := n.book.Current().ByName("desk"); !ok || e.Peer != a.id {
		t.Fatal("not renamed")
	}
	wantErr(t, n.owner.Rename(a.id, "vps", t0), ErrNameTaken)
	if n.owner.Rename(a.id, "members", t0) == nil || n.owner.Rename(a.id, "a.b", t0) == nil {
		t.Fatal("a bad name was given")
	}
}

func TestReplacedMachineKeepsNameGrantsTagsAndServices(t *testing.T) {
	n := newNetwork(t)
	old := n.join(t, "nas-box", InviteOptions{Tags: []string{"ops"}})
	must(t, n.owner.ClaimService(old.id, "nas", t0))
	guest := n.join(t, "guest", InviteOptions{Only: []Grant{{"nas", old.id}}})
	fresh := newMachine(t, "fresh")
	if name := n.joinAs(t, fresh, "whatever", InviteOptions{Replace: old.id}); name != "nas-box" {
		t.Fatalf("it is called %s", name)
	}
	s := n.book.Current()
	e, _ := s.Entry(fresh.id)
	if e.Caps != Member || len(e.Tags) != 1 || s.Services["nas"] != fresh.id {
		t.Fatalf("got %+v, services %v", e, s.Services)
	}
	if _, ok := s.Entry(old.id); ok {
		t.Fatal("the old key still belongs")
	}
	must(t, Authorize(s, t0, guest.id, fresh.id, "nas", Allow{Members: true}))

	phone := n.join(t, "phone", InviteOptions{Only: []Grant{{"nas", fresh.id}}})
	invite, err := n.owner.Invite(InviteOptions{Replace: phone.id}, t0)
	must(t, err)
	must(t, n.revoke(phone.id))
	_, _, err = n.use(t, invite, newMachine(t, "phone2"), "phone2", t0)
	wantErr(t, err, ErrInviteUsed) // and not a member's place
}

func TestReplacedByItselfAMachineKeepsItsPlaceAsItWas(t *testing.T) {
	n := newNetwork(t)
	nas := n.join(t, "nas-box", InviteOptions{})
	guest := n.join(t, "guest", InviteOptions{Only: []Grant{{"nas", nas.id}}, Tags: []string{"ops"}, For: time.Hour})
	place := func() Entry {
		e, _ := n.book.Current().Entry(guest.id)
		return e
	}
	before := place()

	n.joinAs(t, guest, "guest", InviteOptions{Replace: guest.id, Caps: Member})
	if after := place(); !reflect.DeepEqual(after, before) {
		t.Fatalf("it was %+v, and is %+v", before, after)
	}
	if Authorize(n.book.Current(), t0, guest.id, nas.id, "desk", Allow{Members: true}) == nil {
		t.Fatal("a guest may use what it was not invited to")
	}

	late, err := n.owner.Invite(InviteOptions{Replace: guest.id}, t0)
	must(t, err)
	over := t0.Add(time.Hour)
	_, _, err = n.use(t, late, guest, "guest", over)
	wantErr(t, err, ErrInviteExpired)
	_, _, err = n.use(t, late, newMachine(t, "other"), "other", over) // nor is an ended access handed on
	wantErr(t, err, ErrInviteExpired)

	renewed, err := n.owner.Invite(InviteOptions{Replace: guest.id, For: 2 * time.Hour}, over)
	must(t, err)
	_, _, err = n.use(t, renewed, guest, "guest", over)
	must(t, err)
	before.Expires = over.Add(2 * time.Hour)
	if after := place(); !reflect.DeepEqual(after, before) {
		t.Fatalf("renewed it is %+v, want %+v", after, before)
	}
}

func TestRestoredOwnerCannotForkTheNetwork(t *testing.T) {
	n := newNetwork(t)
	laptop, lost := n.join(t, "laptop", InviteOptions{}), n.join(t, "lost", InviteOptions{})
	open, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	backup, err := n.owner.Export("correct horse")
	must(t, err)
	if bytes.Contains(backup, []byte("laptop")) {
		t.Fatal("the backup can be read")
	}
	must(t, n.revoke(lost.id)) // after the backup
	late := n.join(t, "late", InviteOptions{})
	_, err = laptop.book.Take(n.book.Offer(laptop.id, t0))
	must(t, err)

	spare := newMachine(t, "spare")
	dir := filepath.Dir(spare.book.path)
	_, err = Import(dir, spare.book, backup, "wrong", spare.id, t0)
	wantErr(t, err, ErrPassphrase)
	o, err := Import(dir, spare.book, backup, "correct horse", spare.id, t0)
	must(t, err)
	restored := &network{machine: spare, dir: dir, owner: o}
	s := spare.book.Current()
	if s.Term != 2 || s.Role(spare.id) != "owner" || s.Network != n.owner.Network() {
		t.Fatalf("got term %d, role %s", s.Term, s.Role(spare.id))
	}
	_, _, err = restored.use(t, open, newMachine(t, "holder"), "holder", t0)
	wantErr(t, err, ErrInviteUsed) // nobody knows whether it was used since the backup

	// The restored owner works on, then meets what laptop holds: the revocation counts again.
	added := restored.join(t, "added", InviteOptions{})
	changed, err := o.Adopt(laptop.book.Current().Envelope, t0)
	must(t, err)
	s = spare.book.Current()
	if _, ok := s.Entry(lost.id); ok || !changed {
		t.Fatal("the revoked machine is back")
	}
	for _, m := range []*machine{added, late, laptop, spare} {
		if _, ok := s.Entry(m.id); !ok {
			t.Fatalf("%s is missing", m.id)
		}
	}
	_, err = o.Adopt(laptop.book.Current().Envelope, t0)
	wantErr(t, err, ErrOlder)
	_, err = laptop.book.Adopt(s.Envelope)
	must(t, err)

	// The old owner hears of it and is done.
	_, err = n.owner.Adopt(s.Envelope, t0)
	wantErr(t, err, ErrMoved)
	_, err = n.owner.Invite(InviteOptions{}, t0)
	wantErr(t, err, ErrMoved)
	must(t, n.owner.Retire())
	if o, err := OpenOwner(n.dir, n.book, n.id); o != nil || err != nil {
		t.Fatalf("got %v, %v", o, err)
	}
	restored.restart(t)
}

func TestARevokedMachineDoesNotComeBackByARestoredBackup(t *testing.T) {
	n := newNetwork(t)
	member, lost := n.join(t, "member", InviteOptions{}), newMachine(t, "lost")
	code, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	_, _, err = n.use(t, code, lost, "lost", t0)
	must(t, err)
	backup, err := n.owner.Export("correct horse")
	must(t, err)
	must(t, n.revoke(lost.id))
	_, err = member.book.Take(n.book.Offer(member.id, t0))
	must(t, err)

	dir := filepath.Dir(member.book.path)
	o, err := Import(dir, member.book, backup, "correct horse", member.id, t0)
	must(t, err)
	restored := &network{machine: member, dir: dir, owner: o}
	restored.restart(t)
	_, _, err = restored.use(t, code, lost, "lost", t0)
	wantErr(t, err, ErrInviteRevoked)
	if _, ok := member.book.Current().Entry(lost.id); ok {
		t.Fatal("the revoked machine is back")
	}
}

func TestOwnerSetBackAdoptsItsOwnSignatureAndSignsTheNext(t *testing.T) {
	n := newNetwork(t)
	laptop := n.join(t, "laptop", InviteOptions{})
	snapshot, err := os.ReadFile(n.book.path)
	must(t, err)
	nas := n.join(t, "nas-box", InviteOptions{})
	must(t, os.WriteFile(n.book.path, snapshot, 0o600))
	n.restart(t)
	other := n.join(t, "other", InviteOptions{}) // the same epoch, with other content
	_, err = nas.book.Adopt(n.book.Current().Envelope)
	wantErr(t, err, ErrConflict)

	changed, err := n.owner.Adopt(nas.book.Current().Envelope, t0)
	must(t, err)
	s := n.book.Current()
	if _, ok := s.Entry(nas.id); !ok || !changed || s.Epoch != nas.book.Current().Epoch+1 {
		t.Fatalf("got epoch %d", s.Epoch)
	}
	for _, m := range []*machine{laptop, nas, other} {
		_, err := m.book.Adopt(s.Envelope)
		must(t, err)
	}
}

func TestOwnerSetBackEndsTheInvitesItHad(t *testing.T) {
	n := newNetwork(t)
	lost, laptop := newMachine(t, "lost"), newMachine(t, "laptop")
	used, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	_, _, err = n.use(t, used, lost, "lost", t0)
	must(t, err)
	open, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)

	var snapshot [][]byte
	files := []string{n.book.path, filepath.Join(n.dir, ledgerFile)}
	for _, path := range files {
		data, err := os.ReadFile(path)
		must(t, err)
		snapshot = append(snapshot, data)
	}
	_, _, err = n.use(t, open, laptop, "laptop", t0)
	must(t, err)
	must(t, n.revoke(lost.id))
	newest := n.book.Current().Envelope
	for i, path := range files {
		must(t, os.WriteFile(path, snapshot[i], 0o600))
	}
	n.restart(t)
	_, err = n.owner.Adopt(newest, t0)
	must(t, err)
	n.restart(t)

	_, _, err = n.use(t, open, newMachine(t, "second"), "second", t0)
	wantErr(t, err, ErrInviteUsed)
	_, _, err = n.use(t, used, lost, "lost", t0)
	wantErr(t, err, ErrInviteRevoked)
}

func TestOwnersFilesAreRefusedWhenDamagedOrOpen(t *testing.T) {
	n := newNetwork(t)
	path := filepath.Join(n.dir, ledgerFile)
	must(t, os.WriteFile(path, []byte(`{"v":1,"invites":[{"id":"zz"}]}`), 0o600))
	_, err := OpenOwner(n.dir, n.book, n.id)
	var damaged *DamagedError
	if !errors.As(err, &damaged) || damaged.Path != path {
		t.Fatalf("got %v", err)
	}
	must(t, os.Chmod(filepath.Join(n.dir, networkKeyFile), 0o644))
	_, err = OpenOwner(n.dir, n.book, n.id)
	if err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("got %v", err)
	}
}

func TestExpiredEntriesAreDroppedAfterAMonth(t *testing.T) {
	n := newNetwork(t)
	visitor := n.join(t, "visitor", InviteOptions{For: time.Hour})
	on := func() bool { _, ok := n.book.Current().Entry(visitor.id); return ok }
	_, err := n.owner.Update(t0.Add(24*time.Hour), func(*Roster) error { return nil })
	must(t, err)
	if !on() {
		t.Fatal("dropped at once: a wrong clock could not be corrected")
	}
	_, err = n.owner.Update(t0.Add(pruneAfter+2*time.Hour), func(*Roster) error { return nil })
	must(t, err)
	if on() {
		t.Fatal("still listed")
	}
}

func TestMovedNetworkHasOneOwnerAndInvitesOfTheOldEnd(t *testing.T) {
	n := newNetwork(t)
	a := n.join(t, "a", InviteOptions{})
	guest := n.join(t, "guest", InviteOptions{Only: []Grant{{"nas", a.id}}})
	brief := n.join(t, "brief", InviteOptions{For: time.Hour})
	open, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	for _, p := range []peer.ID{n.id, guest.id, brief.id} {
		_, _, err := n.owner.Transfer(p, t0)
		wantErr(t, err, ErrNotAllowed)
	}
	key, stay, err := n.owner.Transfer(a.id, t0)
	must(t, err)
	_, err = n.owner.Update(t0, func(*Roster) error { return nil })
	wantErr(t, err, ErrMoving) // it would be on a roster that the next owner does not go on from
	_, _, err = n.owner.Transfer(brief.id, t0)
	wantErr(t, err, ErrMoving)
	_, err = a.book.Adopt(n.book.Current().Envelope)
	must(t, err)
	dir := filepath.Dir(a.book.path)

	other := newNetwork(t)
	foreign, _, err := other.owner.Transfer(other.join(t, "b", InviteOptions{}).id, t0)
	must(t, err)
	for name, c := range map[string]struct {
		key  []byte
		from peer.ID
	}{
		"another network's key": {foreign, n.id}, "not by the owner": {key, guest.id}, "by itself": {key, a.id}, "no key": {[]byte("key"), n.id},
	} {
		if _, err := Succeed(dir, a.book, c.key, c.from, a.id, t0); err == nil {
			t.Fatalf("%s was taken", name)
		}
	}
	next, err := Succeed(dir, a.book, key, n.id, a.id, t0)
	must(t, err)
	if s := a.book.Current(); s.Owner != a.id || s.Term != 2 || len(s.Entries) != 4 {
		t.Fatalf("roster %s of owner %s with %d entries", s.number(), s.Owner, len(s.Entries))
	}
	stay()
	must(t, n.owner.Rename(guest.id, "late", t0)) // the old owner has not heard yet
	late := n.book.Current().Envelope
	_, err = n.owner.Adopt(a.book.Current().Envelope, t0)
	wantErr(t, err, ErrMoved)
	_, err = n.owner.Update(t0, func(*Roster) error { return nil })
	wantErr(t, err, ErrMoved)
	_, err = next.Adopt(late, t0) // and what it still did is not lost
	must(t, err)
	if _, ok := a.book.Current().ByName("late"); !ok {
		t.Fatal("what the old owner did meanwhile is lost")
	}
	m := newMachine(t, "late-joiner")
	request, finish, err := open.Request(m.key, "x")
	must(t, err)
	reply, _ := next.Join(request, m.id, t0)
	if _, _, err := finish(reply); err == nil {
		t.Fatal("an invite of the old owner was good for the new one")
	}
	again, err := OpenOwner(dir, a.book, a.id) // after a restart too
	must(t, err)
	if again == nil {
		t.Fatal("the new owner is none after a restart")
	}
}
