package daemon

import (
	"bytes"
	"encoding/json"
	"reflect"
	"runtime"
	"strings"
	"testing"

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
