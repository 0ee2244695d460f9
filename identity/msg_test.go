package identity

import (
	"bytes"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func TestMessagesComeOutAsTheyWentIn(t *testing.T) {
	var wire bytes.Buffer
	want := RosterMsg{Term: 1, Epoch: 2, Roster: []byte{1, 2}, Slices: [][]byte{{3}}}
	must(t, WriteMsg(&wire, want))
	must(t, WriteMsg(&wire, ServicesMsg{Services: []ServiceInfo{{Name: "nas", Port: 22}}}))
	var got RosterMsg
	must(t, ReadMsg(&wire, MaxRosterMsg, &got))
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v", got)
	}
	var services ServicesMsg
	must(t, ReadMsg(&wire, MaxServicesMsg, &services))
	must(t, services.Check())
	if err := ReadMsg(&wire, 100, &got); err != io.EOF {
		t.Fatalf("got %v", err)
	}
}

func TestMessageBeyondItsLimitIsRefusedBeforeItIsRead(t *testing.T) {
	var v any
	wantErr(t, ReadMsg(strings.NewReader("\x00\x00\x00\x0b[1,2,3,4,5]"), 10, &v), ErrTooLarge)
	wantErr(t, ReadMsg(strings.NewReader("\xff\xff\xff\xff"), 1<<40, &v), ErrTooLarge)
	wantErr(t, ReadMsg(strings.NewReader("\x00\x00\x00\x05[1"), 10, &v), io.ErrUnexpectedEOF)

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	wantErr(t, ReadMsg(strings.NewReader("\x00\xff\xff\xff["), maxMsg, &v), io.ErrUnexpectedEOF)
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Fatalf("an announced length took %d bytes", grown)
	}
}

func TestMoreSlicesThanANetworkHasAreRefused(t *testing.T) {
	var wire bytes.Buffer
	must(t, WriteMsg(&wire, RosterMsg{Slices: make([][]byte, maxSlices)}))
	must(t, WriteMsg(&wire, RosterMsg{Slices: make([][]byte, maxSlices+1)}))
	var got RosterMsg
	must(t, ReadMsg(&wire, MaxRosterMsg, &got))
	if len(got.Slices) != maxSlices {
		t.Fatalf("got %d slices", len(got.Slices))
	}
	wantErr(t, ReadMsg(&wire, MaxRosterMsg, &got), ErrTooLarge)
}
