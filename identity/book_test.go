package identity

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestBookTakesNewerRostersAndNeverGoesBack(t *testing.T) {
	n := newNetwork(t)
	laptop := n.join(t, "laptop", InviteOptions{})
	old := n.book.Current().Envelope
	n.join(t, "nas-box", InviteOptions{})
	newer := n.book.Current().Envelope

	changed, err := laptop.book.Adopt(newer)
	must(t, err)
	if !changed {
		t.Fatal("the newer roster was not adopted")
	}
	changed, err = laptop.book.Adopt(newer)
	must(t, err)
	if changed {
		t.Fatal("the same roster counted as a change")
	}
	_, err = laptop.book.Adopt(old)
	wantErr(t, err, ErrOlder)

	again, err := OpenBook(laptop.book.path)
	must(t, err)
	if !bytes.Equal(again.Current().Envelope, newer) {
		t.Fatal("the book forgot")
	}
	_, err = again.Adopt(old)
	wantErr(t, err, ErrOlder)
}

func TestBookRefusesOtherNetworks(t *testing.T) {
	n := newNetwork(t)
	laptop := n.join(t, "laptop", InviteOptions{})

	r, key := sampleRoster(t)
	r.Epoch = 1000
	foreign, err := Seal(r, key)
	must(t, err)
	_, err = laptop.book.Adopt(foreign.Envelope)
	wantErr(t, err, ErrOtherNetwork)
	wantErr(t, laptop.book.Join(foreign), ErrJoined)

	empty := newMachine(t, "empty")
	_, err = empty.book.Adopt(foreign.Envelope)
	wantErr(t, err, ErrNoNetwork)
	must(t, laptop.book.Leave())
	must(t, laptop.book.Join(foreign))
	if laptop.book.Current().Name != "home" {
		t.Fatal("not joined")
	}
}

func TestFailedWriteLeavesTheBookAsItWas(t *testing.T) {
	n := newNetwork(t)
	laptop := n.join(t, "laptop", InviteOptions{})
	before := laptop.book.Current()
	n.join(t, "nas-box", InviteOptions{})
	beat, err := n.owner.Heartbeat(t0.Add(time.Hour))
	must(t, err)

	laptop.book.write = fullDisk
	_, err = laptop.book.Adopt(n.book.Current().Envelope)
	wantErr(t, err, errDisk)
	_, err = laptop.book.Take(n.book.Offer(laptop.id, t0))
	wantErr(t, err, errDisk)
	_, err = laptop.book.AdoptHeartbeat(beat)
	wantErr(t, err, errDisk)
	wantErr(t, laptop.book.Leave(), errDisk)
	if laptop.book.Current() != before {
		t.Fatal("a roster that is not on disk is in use")
	}
	again, err := OpenBook(laptop.book.path)
	must(t, err)
	if !bytes.Equal(again.Current().Envelope, before.Envelope) {
		t.Fatal("the disk holds something else")
	}
}

func TestDamagedBookIsNamedAndKept(t *testing.T) {
	n := newNetwork(t)
	good, err := os.ReadFile(n.book.path)
	must(t, err)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, content := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)-10], "flipped": flipped, "not JSON": []byte("hello"),
		"newer": []byte(`{"v":2}`), "unknown field": []byte(`{"v":1,"x":1}`), "two": append(bytes.Clone(good), good...),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "roster")
			must(t, os.WriteFile(path, content, 0o600))
			_, err := OpenBook(path)
			var damaged *DamagedError
			if !errors.As(err, &damaged) || damaged.Path != path {
				t.Fatalf("got %v", err)
			}
			if kept, _ := os.ReadFile(path); !bytes.Equal(kept, content) {
				t.Fatal("the file was touched")
			}
		})
	}
	must(t, os.Chmod(n.book.path, 0o644))
	var mode *ModeError
	if _, err := OpenBook(n.book.path); !errors.As(err, &mode) {
		t.Fatalf("got %v", err)
	}
}

func TestClockSetBackRevivesNothing(t *testing.T) {
	n := newNetwork(t)
	nas := n.join(t, "nas-box", InviteOptions{})
	visitor := n.join(t, "visitor", InviteOptions{For: time.Hour})
	_, err := nas.book.Take(n.book.Offer(nas.id, t0))
	must(t, err)
	if !nas.book.Member(visitor.id, t0) {
		t.Fatal("the visitor was not let in")
	}
	if nas.book.Member(visitor.id, t0.Add(time.Hour)) {
		t.Fatal("the visitor outstayed its hour")
	}
	if !nas.book.Member(visitor.id, time.Unix(0, 0)) {
		t.Fatal("a machine that starts in 1970 locks everybody out")
	}

	beat, err := n.owner.Heartbeat(t0.Add(2 * time.Hour))
	must(t, err)
	_, err = nas.book.AdoptHeartbeat(beat)
	must(t, err)
	if nas.book.Member(visitor.id, t0) {
		t.Fatal("a clock set back after a heartbeat revived an expired access")
	}
	again, err := OpenBook(nas.book.path)
	must(t, err)
	if again.Member(visitor.id, t0) {
		t.Fatal("so did a restart")
	}
	s := again.For(visitor.id)
	if Authorize(s, again.Now(t0), visitor.id, nas.id, "nas", Allow{Members: true}) == nil {
		t.Fatal("an expired access was authorised")
	}
}

func TestOwnersNextEpochCorrectsAWrongTime(t *testing.T) {
	n := newNetwork(t)
	visitor := n.join(t, "visitor", InviteOptions{For: time.Hour})
	nop := func(*Roster) error { return nil }
	_, err := n.owner.Update(t0.AddDate(20, 0, 0).Add(-30*24*time.Hour), func(*Roster) error { return errDisk })
	wantErr(t, err, errDisk)
	_, err = n.owner.Update(t0.Add(48*time.Hour), nop) // the owner's clock is two days fast
	must(t, err)
	_, err = n.owner.Heartbeat(t0.Add(49 * time.Hour))
	must(t, err)
	if n.book.Member(visitor.id, t0) {
		t.Fatal("the wrong time was not believed")
	}
	_, err = n.owner.Update(t0.Add(time.Minute), nop)
	must(t, err)
	if !n.book.Member(visitor.id, t0) {
		t.Fatal("the corrected time was not believed")
	}
}

func TestHeartbeatSaysHowFreshARosterIs(t *testing.T) {
	n := newNetwork(t)
	laptop := n.join(t, "laptop", InviteOptions{})
	early, err := n.owner.Heartbeat(t0.Add(time.Hour))
	must(t, err)
	late, err := n.owner.Heartbeat(t0.Add(2 * time.Hour))
	must(t, err)
	for _, step := range []struct {
		beat    []byte
		changed bool
	}{{late, true}, {early, false}, {late, false}} {
		changed, err := laptop.book.AdoptHeartbeat(step.beat)
		if err != nil || changed != step.changed {
			t.Fatalf("got %v, %v", changed, err)
		}
	}
	if got := laptop.book.Fresh(); !got.Equal(t0.Add(2 * time.Hour)) {
		t.Fatalf("fresh as of %s", got)
	}
	n.join(t, "nas-box", InviteOptions{})
	beyond, err := n.owner.Heartbeat(t0.Add(3 * time.Hour))
	must(t, err)
	_, err = laptop.book.AdoptHeartbeat(beyond) // of an epoch that laptop has not seen
	must(t, err)
	if got := laptop.book.Fresh(); !got.Equal(t0) {
		t.Fatalf("a roster known to be overtaken is fresh as of %s", got)
	}
	_, err = laptop.book.Take(n.book.Offer(laptop.id, t0))
	must(t, err)
	_, err = laptop.book.AdoptHeartbeat(late)
	wantErr(t, err, ErrOlder)

	bad := bytes.Clone(beyond)
	for i := range bad {
		bad[i] ^= 1
		if _, err := laptop.book.AdoptHeartbeat(bad); err == nil {
			t.Fatalf("byte %d flipped, and adopted", i)
		}
		bad[i] ^= 1
	}
}

func TestOfferGivesEachWhatItMayHave(t *testing.T) {
	n := newNetwork(t)
	nas := n.join(t, "nas-box", InviteOptions{})
	guest := n.join(t, "guest", InviteOptions{Only: []Grant{{"nas", nas.id}}})
	expired := n.join(t, "expired", InviteOptions{For: time.Minute})
	_, stranger := testKey(t, "stranger")

	if msg := n.book.Offer(stranger, t0); msg.Roster != nil || msg.Epoch != 0 || msg.Slices != nil || msg.Heartbeat != nil {
		t.Fatalf("a stranger was offered %+v", msg)
	}
	if msg := n.book.Offer(expired.id, t0.Add(time.Minute)); msg.Roster != nil {
		t.Fatal("an expired peer was offered the roster")
	}
	msg := n.book.Offer(guest.id, t0)
	s, err := Open(msg.Roster, n.owner.Network())
	must(t, err)
	if s.For != guest.id || msg.Slices != nil {
		t.Fatal("the guest was offered more than its slice")
	}
	changed, err := guest.book.Take(msg)
	must(t, err)
	if !changed || guest.book.Current().For != guest.id {
		t.Fatal("the guest did not take its newer slice")
	}

	changed, err = nas.book.Take(n.book.Offer(nas.id, t0))
	must(t, err)
	if !changed || !bytes.Equal(nas.book.Offer(guest.id, t0).Roster, msg.Roster) {
		t.Fatal("a member cannot hand a guest its slice on")
	}
	must(t, n.revoke(guest.id))
	if msg := n.book.Offer(guest.id, t0); msg.Roster != nil {
		t.Fatal("a revoked peer was offered the new roster")
	}
}

func TestNewerSliceProvesTheGuestAndReplacesNothing(t *testing.T) {
	n := newNetwork(t)
	nas := n.join(t, "nas-box", InviteOptions{})
	guest := n.join(t, "guest", InviteOptions{Only: []Grant{{"nas", nas.id}}})

	if nas.book.Member(guest.id, t0) {
		t.Fatal("nas-box knows the guest already")
	}
	before := nas.book.Current()
	changed, err := nas.book.Take(guest.book.Offer(nas.id, t0))
	must(t, err)
	if !changed || nas.book.Current() != before {
		t.Fatal("the slice was refused, or replaced the roster")
	}
	s := nas.book.For(guest.id)
	must(t, Authorize(s, t0, guest.id, nas.id, "nas", Allow{Members: true}))
	if Authorize(s, t0, guest.id, nas.id, "web", Allow{Members: true}) == nil {
		t.Fatal("the guest got more than it was granted")
	}

	must(t, n.revoke(guest.id))
	_, err = nas.book.Take(n.book.Offer(nas.id, t0))
	must(t, err)
	if nas.book.Member(guest.id, t0) {
		t.Fatal("an old slice outlives the revocation")
	}
	_, err = nas.book.Take(guest.book.Offer(nas.id, t0))
	must(t, err)
	if nas.book.Member(guest.id, t0) {
		t.Fatal("an old slice shown again revives the guest")
	}
}

func TestWatchTellsOfChangesInOneWord(t *testing.T) {
	n := newNetwork(t)
	changes, stop := n.book.Watch()
	n.join(t, "a", InviteOptions{})
	n.join(t, "b", InviteOptions{})
	select {
	case <-changes:
	default:
		t.Fatal("no word of the change")
	}
	select {
	case <-changes:
		t.Fatal("two words for what can be looked at once")
	default:
	}
	stop()
	n.join(t, "c", InviteOptions{})
	select {
	case <-changes:
		t.Fatal("a word after stop")
	default:
	}
}

func TestNextExpiryIsTheFirstThatIsStillToCome(t *testing.T) {
	n := newNetwork(t)
	if next := n.book.NextExpiry(t0); !next.IsZero() {
		t.Fatalf("nothing expires, yet %v", next)
	}
	n.join(t, "a", InviteOptions{For: 2 * time.Hour})
	n.join(t, "b", InviteOptions{For: time.Hour})
	n.join(t, "c", InviteOptions{})
	for now, want := range map[time.Duration]time.Duration{0: time.Hour, time.Hour: 2 * time.Hour} {
		if next := n.book.NextExpiry(t0.Add(now)); !next.Equal(t0.Add(want)) {
			t.Errorf("at %v the next is %v, want %v", now, next, want)
		}
	}
	if next := n.book.NextExpiry(t0.Add(2 * time.Hour)); !next.IsZero() {
		t.Errorf("all have expired, yet %v", next)
	}
}

func TestABookKnowsWhichSlicesItLacks(t *testing.T) {
	n := newNetwork(t)
	guest := n.join(t, "guest", InviteOptions{Only: []Grant{{"nas", n.id}}})
	joiner := n.join(t, "joiner", InviteOptions{})
	if lacks := [3]int{n.book.Lacks(), joiner.book.Lacks(), guest.book.Lacks()}; lacks != [3]int{0, 1, 0} {
		t.Fatalf("owner, joiner and guest lack %v slices", lacks)
	}
	_, err := joiner.book.Take(n.book.Offer(joiner.id, t0))
	must(t, err)
	if joiner.book.Lacks() != 0 || joiner.book.Offer(guest.id, t0).Roster == nil {
		t.Fatal("the joiner has nothing for the guest")
	}
}
