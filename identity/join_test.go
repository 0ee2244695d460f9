package identity

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestJoinPutsTheMachineOnTheRoster(t *testing.T) {
	n := newNetwork(t)
	laptop, twin := newMachine(t, "laptop"), newMachine(t, "twin")
	if name := n.joinAs(t, laptop, "Laptop.local", InviteOptions{Tags: []string{"ops"}}); name != "laptop" {
		t.Fatalf("it is called %s", name)
	}
	if name := n.joinAs(t, twin, "laptop", InviteOptions{}); name != "laptop-2" {
		t.Fatalf("its twin is called %s", name)
	}
	e, ok := twin.book.Current().Entry(laptop.id)
	if !ok || e.Caps != Member || e.Tags[0] != "ops" || !e.Expires.IsZero() {
		t.Fatalf("got %+v", e)
	}
}

func TestARelayThatWaitsIsOnTheRosterWithItsAddressAtOnce(t *testing.T) {
	n := newNetwork(t)
	at := addrs(t, "/dns/vps.example/udp/4001/quic-v1", "/dns/vps.example/tcp/4001")
	for _, wrong := range []InviteOptions{{At: at}, {At: at, Caps: Relay, Uses: 2}} {
		if _, err := n.owner.Invite(wrong, t0); err == nil {
			t.Errorf("an invite for %+v", wrong)
		}
	}
	code, err := n.owner.Invite(InviteOptions{Caps: Relay, At: at}, t0)
	must(t, err)
	n.restart(t)
	invite, err := ParseInvite(code.String())
	must(t, err)
	if got, waits := invite.Waits(); !waits || len(got) != 2 || invite.Owner() != n.id {
		t.Fatalf("it waits: %v at %v for %s", waits, got, invite.Owner())
	}
	door, err := invite.DoorKey()
	must(t, err)
	id, err := peer.IDFromPrivateKey(door)
	must(t, err)
	waiting := n.owner.Waiting(t0)
	if len(waiting) != 1 || waiting[0].Joiner.ID != id || !waiting[0].Joiner.Addrs[1].Equal(at[1]) {
		t.Fatalf("to be dialled: %+v", waiting)
	}
	if late := n.owner.Waiting(waiting[0].Expires); len(late) > 0 {
		t.Fatalf("after its end: %+v", late)
	}
	relay := newMachine(t, "relay")
	request, finish, err := invite.Request(relay.key, "relay")
	must(t, err)
	reply, err := n.owner.Join(request, "", t0)
	must(t, err)
	s, _, err := finish(reply)
	must(t, err)
	if len(s.Relays) != 1 || !s.Relays[0].equal(RelayInfo{relay.id, at}) {
		t.Fatalf("on the roster: %+v", s.Relays)
	}
	if left := n.owner.Waiting(t0); len(left) > 0 {
		t.Fatalf("still to be dialled: %+v", left)
	}
}

func TestHundredAtOnceOnAOneUseInviteYieldOnePeer(t *testing.T) {
	n := newNetwork(t)
	invite, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	var wg sync.WaitGroup
	var mu sync.Mutex
	joined := map[peer.ID]bool{}
	for i := range 100 {
		key, id := testKey(t, fmt.Sprint("joiner ", i))
		wg.Go(func() {
			request, finish, err := invite.Request(key, "laptop")
			if err != nil {
				t.Error(err)
				return
			}
			reply, _ := n.owner.Join(request, id, t0)
			mu.Lock()
			defer mu.Unlock()
			switch _, _, err := finish(reply); err {
			case nil:
				joined[id] = true
			case ErrInviteUsed:
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n.restart(t)
	if len(joined) != 1 || len(n.book.Current().Entries) != 2 {
		t.Fatalf("%d joined, %d on the roster", len(joined), len(n.book.Current().Entries))
	}
}

func TestSamePeerAgainIsTheSameUse(t *testing.T) {
	n := newNetwork(t)
	invite, err := n.owner.Invite(InviteOptions{Expires: time.Hour}, t0)
	must(t, err)
	laptop := newMachine(t, "laptop")
	first, name, err := n.use(t, invite, laptop, "laptop", t0)
	must(t, err)
	n.restart(t)
	again, name2, err := n.use(t, invite, laptop, "another name", t0.Add(2*time.Hour)) // the reply was lost; the code has expired since
	must(t, err)
	if name != name2 || !bytes.Equal(first.Envelope, again.Envelope) {
		t.Fatal("the second answer differs")
	}
}

func TestAUseThatNeverReachedTheRosterEndsWithItsInvite(t *testing.T) {
	n := newNetwork(t)
	invite, err := n.owner.Invite(InviteOptions{Expires: time.Hour}, t0)
	must(t, err)
	laptop := newMachine(t, "laptop")
	n.book.write = fullDisk
	_, _, err = n.use(t, invite, laptop, "laptop", t0)
	wantErr(t, err, ErrOwnerFailed)
	n.restart(t)
	_, _, err = n.use(t, invite, laptop, "laptop", t0.Add(time.Hour))
	wantErr(t, err, ErrInviteExpired)
}

func TestHolderIsToldWhyAndAGuesserNothing(t *testing.T) {
	n := newNetwork(t)
	laptop := newMachine(t, "laptop")
	invite, err := n.owner.Invite(InviteOptions{Expires: time.Hour}, t0)
	must(t, err)

	_, _, err = n.use(t, invite, laptop, "laptop", t0.Add(time.Hour))
	wantErr(t, err, ErrInviteExpired)

	guess := invite
	guess.secret[0] ^= 1
	request, finish, err := guess.Request(laptop.key, "laptop")
	must(t, err)
	reply, err := n.owner.Join(request, laptop.id, t0)
	if reply != nil || err == nil {
		t.Fatal("a guesser got an answer")
	}
	_, _, err = finish(reply)
	wantErr(t, err, ErrInviteUnknown)

	unknown := invite
	unknown.id[0] ^= 1
	_, _, err = n.use(t, unknown, laptop, "laptop", t0)
	wantErr(t, err, ErrInviteUnknown)

	_, _, err = n.use(t, invite, laptop, "laptop", t0)
	must(t, err)
	_, _, err = n.use(t, invite, newMachine(t, "other"), "other", t0)
	wantErr(t, err, ErrInviteUsed)
}

func TestClockSetBackRevivesNoInvite(t *testing.T) {
	n := newNetwork(t)
	invite, err := n.owner.Invite(InviteOptions{Expires: time.Hour}, t0)
	must(t, err)
	_, err = n.owner.Heartbeat(t0.Add(2 * time.Hour))
	must(t, err)
	n.restart(t)
	_, _, err = n.use(t, invite, newMachine(t, "laptop"), "laptop", t0)
	wantErr(t, err, ErrInviteExpired)
}

func TestGuessesAreLimited(t *testing.T) {
	n := newNetwork(t)
	invite, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	guess := invite
	guess.secret[3] ^= 1
	laptop := newMachine(t, "laptop")
	for range maxGuesses {
		n.use(t, guess, laptop, "laptop", t0)
	}
	_, _, err = n.use(t, invite, laptop, "laptop", t0)
	wantErr(t, err, ErrInviteUnknown) // not even tried
	_, _, err = n.use(t, invite, laptop, "laptop", t0.Add(guessWindow))
	must(t, err)
}

func TestGuessesArePastWithTheirWindow(t *testing.T) {
	n := newNetwork(t)
	laptop := newMachine(t, "laptop")
	for i := range 3 {
		guess, err := n.owner.Invite(InviteOptions{}, t0)
		must(t, err)
		guess.secret[3] ^= 1
		n.use(t, guess, laptop, "laptop", t0.Add(time.Duration(i)*guessWindow))
	}
	if held := len(n.owner.guesses); held != 1 {
		t.Fatalf("%d counts are held", held)
	}
}

func TestCarriedRequestIsTheSameAndAMisdirectedOneIsIgnored(t *testing.T) {
	n := newNetwork(t)
	invite, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	laptop, thief := newMachine(t, "laptop"), newMachine(t, "thief")
	request, finish, err := invite.Request(laptop.key, "laptop")
	must(t, err)
	reply, err := n.owner.Join(request, thief.id, t0)
	if reply != nil || err == nil {
		t.Fatal("somebody else's request was answered")
	}
	reply, err = n.owner.Join(request, "", t0)
	must(t, err)
	s, _, err := finish(reply)
	must(t, err)
	if _, ok := s.Entry(laptop.id); !ok {
		t.Fatal("not on the roster")
	}

	// Nothing but the very reply to the very request counts.
	_, finish2, err := invite.Request(laptop.key, "laptop")
	must(t, err)
	_, _, err = finish2(reply)
	wantErr(t, err, ErrInviteUnknown)
	for i := range reply {
		bad := bytes.Clone(reply)
		bad[i] ^= 1
		if _, _, err := finish(bad); err == nil {
			t.Fatalf("byte %d of the reply flipped, and taken", i)
		}
	}
	_, _, err = finish(make([]byte, MaxJoinReply+1))
	wantErr(t, err, ErrTooLarge)
}

func TestFlippedBitInARequestIsRefused(t *testing.T) {
	n := newNetwork(t)
	invite, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	laptop := newMachine(t, "laptop")
	request, _, err := invite.Request(laptop.key, "laptop")
	must(t, err)
	for i := range request {
		bad := bytes.Clone(request)
		bad[i] ^= 1
		if reply, err := n.owner.Join(bad, laptop.id, t0.Add(time.Duration(i)*guessWindow)); reply != nil || err == nil {
			t.Fatalf("byte %d flipped, and answered", i)
		}
	}
	if reply, err := n.owner.Join(append(request, 0), laptop.id, t0); reply != nil || err == nil {
		t.Fatal("a longer request was answered")
	}
	if reply, err := n.owner.Join(make([]byte, MaxJoinRequest+1), laptop.id, t0); reply != nil || err == nil {
		t.Fatal("an oversized request was answered")
	}
}

func TestForgedSignatureInsideARequestIsRefused(t *testing.T) {
	n := newNetwork(t)
	invite, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	victim, thief := newMachine(t, "victim"), newMachine(t, "thief")
	base, err := invite.key()
	must(t, err)
	head := append(append([]byte{joinVersion}, invite.id[:]...), make([]byte, 24)...)
	j := joinRequest{joiner: victim.id, owner: invite.owner, name: "victim"}
	j.signature, err = thief.key.Sign(j.signed(head, invite.network))
	must(t, err)
	box, err := joinBox(base, "request")
	must(t, err)
	request := box.Seal(bytes.Clone(head), head[1+inviteIDSize:], j.format(), head)
	if reply, err := n.owner.Join(request, "", t0); reply != nil || err == nil {
		t.Fatal("a holder put somebody else's key on the roster")
	}
}

func TestAnotherInviteTakesNothingAway(t *testing.T) {
	n := newNetwork(t)
	laptop := n.join(t, "laptop", InviteOptions{Tags: []string{"a"}})
	n.joinAs(t, laptop, "laptop", InviteOptions{Only: []Grant{{"nas", n.id}}, For: time.Hour, Tags: []string{"b"}})
	e, _ := n.book.Current().Entry(laptop.id)
	if e.Caps != Member || len(e.Only) != 0 || !e.Expires.IsZero() || len(e.Tags) != 2 {
		t.Fatalf("got %+v", e)
	}
	guest := n.join(t, "guest", InviteOptions{Only: []Grant{{"nas", n.id}}})
	n.joinAs(t, guest, "guest", InviteOptions{Caps: Device})
	e, _ = n.book.Current().Entry(guest.id)
	if e.Caps != Member || len(e.Only) != 1 || !e.guest() {
		t.Fatalf("a device and guest may use everything: %+v", e)
	}
	if e := unite(Entry{Caps: Guest}, Entry{Caps: Device}); e.Caps != Device {
		t.Fatalf("a guest of nothing and a device may use: %+v", e)
	}
}

func TestGuestGetsItsSliceAtJoin(t *testing.T) {
	n := newNetwork(t)
	n.join(t, "secret", InviteOptions{})
	guest := n.join(t, "guest", InviteOptions{Only: []Grant{{"nas", n.id}}})
	if s := guest.book.Current(); s.For != guest.id || len(s.Entries) != 2 {
		t.Fatalf("got %+v", s.Roster)
	}
	n.joinAs(t, guest, "guest", InviteOptions{}) // becomes a member
	if s := guest.book.Current(); s.For != "" || len(s.Entries) != 3 {
		t.Fatalf("got %+v", s.Roster)
	}
}
