package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"

	"fwd/identity"
)

// fullMsg is a message of the greatest size whose field is a list of nothing but value.
func fullMsg(t testing.TB, field, value string) []byte {
	t.Helper()
	room := identity.MaxRosterMsg - len(field) - 10
	list := strings.Repeat(value+",", room/(len(value)+1)-1) + value
	var wire bytes.Buffer
	if err := identity.WriteMsg(&wire, json.RawMessage(`{"`+field+`":[`+list+`]}`)); err != nil {
		t.Fatal(err)
	}
	return wire.Bytes()
}

func TestAnAnswerTakesLittleMoreThanItsSize(t *testing.T) {
	for name, wire := range map[string][]byte{
		"of events":                fullMsg(t, "events", `{}`),
		"of slices":                fullMsg(t, "slices", `""`),
		"of one event's addresses": fullMsg(t, "events", `{"addrs":[`+strings.Repeat(`"",`, 1<<20)+`""]}`),
	} {
		var reply rosterReply
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := identity.ReadMsg(bytes.NewReader(wire), identity.MaxRosterMsg, &reply)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 16*uint64(len(wire)) {
			t.Errorf("an answer %s of %d KiB took %d KiB", name, len(wire)>>10, grown>>10)
		}
		if err == nil {
			t.Errorf("an answer %s was taken", name)
		}
	}
}

func TestAnAnswersEventsComeOutAsTheyWentIn(t *testing.T) {
	want := rosterReply{Version: "1", Events: toldEvents{{Event: "invite", Invite: "fwd1x"}, {Event: "result"}}}
	var wire bytes.Buffer
	if err := identity.WriteMsg(&wire, want); err != nil {
		t.Fatal(err)
	}
	var got rosterReply
	if err := identity.ReadMsg(&wire, identity.MaxRosterMsg, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A sleeper is a member that is connected and answers nothing.
type sleeper struct {
	host.Host
	asked chan struct{} // it was to compare rosters
}

// newSleeper joins by an invite's contact.
func newSleeper(t *testing.T, code string) *sleeper {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.NoListenAddrs, libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	s := &sleeper{h, make(chan struct{}, 64)}
	h.SetStreamHandler(rosterProtocol, func(network.Stream) { s.asked <- struct{}{} })

	invite, err := identity.ParseInvite(code)
	if err != nil {
		t.Fatal(err)
	}
	request, finish, err := invite.Request(key, "sleeper")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := h.Connect(ctx, invite.Contact()); err != nil {
		t.Fatal(err)
	}
	stream, err := h.NewStream(ctx, invite.Contact().ID, joinProtocol)
	if err != nil {
		t.Fatal(err)
	}
	stream.Write(request)
	stream.CloseWrite()
	reply, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := finish(reply); err != nil {
		t.Fatal(err)
	}
	return s
}

// sees is the epoch with which m met the machine last.
func (m *machine) sees(name string) uint64 {
	m.t.Helper()
	var peers []PeerEntry
	for _, e := range m.must(PeersRequest{}) {
		if err := json.Unmarshal(e.Result, &peers); e.Event == "peers" && err != nil {
			m.t.Fatal(err)
		}
	}
	for _, p := range peers {
		if p.Name == name {
			return p.Epoch
		}
	}
	return 0
}

func TestARevocationWaitsForNoMachineThatIsAsleep(t *testing.T) {
	relay, first := newRelay(t)
	nas, phone := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	phone.must(JoinRequest{Invite: relay.invite(), As: "phone"})

	asleep := newSleeper(t, relay.invite())
	await(t, asleep.asked, "word of its own joining to the sleeper")
	eventually(t, "the NAS has told the relay that it knows, and asks no more", func() bool { return relay.sees("nas-box") == relay.status().Network.Epoch })
	relay.must(RevokeRequest{Peer: "phone"})
	revoked := relay.status().Network.Epoch
	for end := time.Now().Add(rosterTimeout * 2 / 3); nas.status().Network.Epoch < revoked; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the NAS is not told while the sleeper's time lasts")
		}
	}
	if len(asleep.asked) > 0 {
		t.Error("the sleeper was asked again before it answered")
	}
}

// Who joins is given the roster alone, and may be the first to bring it to a relay.
func TestWhoHasTheRosterAloneIsGivenItsGuestsSlices(t *testing.T) {
	relay, first := newRelay(t)
	nas, guest := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	for _, e := range relay.must(InviteRequest{Only: []string{"nas"}}) {
		if e.Event == "invite" {
			guest.must(JoinRequest{Invite: e.Invite, As: "guest"})
		}
	}
	page := func() (text map[string]any) {
		data, err := os.ReadFile(nas.home.file("roster"))
		if err == nil {
			err = json.Unmarshal(data, &text)
		}
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	slices := func() bool { return page()["slices"] != nil }
	eventually(t, "the guest's slice at the NAS", slices)
	nas.must(StopRequest{})
	if err := AwaitEnd(t.Context(), nas.home); err != nil {
		t.Fatal(err)
	}
	alone := page()
	delete(alone, "slices")
	data, err := json.Marshal(alone)
	if err == nil {
		err = os.WriteFile(nas.home.file("roster"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	epoch := relay.status().Network.Epoch
	nas.start(0)
	eventually(t, "the guest's slice at the NAS again", slices)
	if now := relay.status().Network.Epoch; now != epoch {
		t.Errorf("it came with epoch %d, not by comparing %d", now, epoch)
	}
}

func FuzzRosterReply(f *testing.F) {
	f.Add([]byte(`{"term":1,"epoch":2,"slices":["AA=="],"events":[{"event":"invite","invite":"fwd1x"}],"want":true}`))
	f.Add([]byte(`{"slices":null,"events":null}`))
	f.Add([]byte(`{"events":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var reply rosterReply
		if json.Unmarshal(data, &reply) != nil {
			return
		}
		if len(reply.Events) > maxToldEvents {
			t.Fatalf("%d events", len(reply.Events))
		}
		once, err := json.Marshal(reply)
		if err != nil {
			return // a result that is no JSON
		}
		var again rosterReply
		if err := json.Unmarshal(once, &again); err != nil {
			t.Fatalf("%s does not read back: %v", once, err)
		}
	})
}
