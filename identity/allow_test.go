package identity

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestAuthorizeAsksRosterRoleGrantsAndList(t *testing.T) {
	_, self := testKey(t, "nas-box")
	_, other := testKey(t, "other-box")
	_, p := testKey(t, "p")
	_, owner := testKey(t, "owner")
	members := Allow{Members: true}
	here, there := []Grant{{"nas", self}}, []Grant{{"nas", other}}
	for _, c := range []struct {
		name  string
		entry Entry
		allow Allow
		ok    bool
	}{
		{"a member where members may", Entry{Caps: Member}, members, true},
		{"a member where nobody may", Entry{Caps: Member}, Allow{}, false},
		{"a member by name", Entry{Caps: Member}, Allow{Peers: []peer.ID{p}}, true},
		{"a member where another may", Entry{Caps: Member}, Allow{Peers: []peer.ID{other}}, false},
		{"a member by tag", Entry{Caps: Member, Tags: []string{"ops"}}, Allow{Tags: []string{"dev", "ops"}}, true},
		{"a member without the tag", Entry{Caps: Member, Tags: []string{"dev"}}, Allow{Tags: []string{"ops"}}, false},
		{"a member who is denied", Entry{Caps: Member}, Allow{Members: true, Peers: []peer.ID{p}, Deny: []peer.ID{p}}, false},
		{"an admin", Entry{Caps: Member | Admin}, members, true},
		{"an admin who may not use", Entry{Caps: Admin}, members, false},
		{"a device", Entry{Caps: Device}, Allow{Members: true, Peers: []peer.ID{p}}, false},
		{"a relay among members", Entry{Caps: Relay | Use}, members, false},
		{"a relay by name", Entry{Caps: Relay | Use}, Allow{Peers: []peer.ID{p}}, true},
		{"a member whose tag is denied", Entry{Caps: Member, Tags: []string{"dev", "ops"}}, Allow{Members: true, Peers: []peer.ID{p}, DenyTags: []string{"ops"}}, false},
		{"a member without the denied tag", Entry{Caps: Member, Tags: []string{"dev"}}, Allow{Members: true, DenyTags: []string{"ops"}}, true},
		{"a member where members are denied", Entry{Caps: Member}, Allow{Members: true, DenyMembers: true}, false},
		{"a member by name where members are denied", Entry{Caps: Member}, Allow{Members: true, DenyMembers: true, Peers: []peer.ID{p}}, true},
		{"a relay that may not use, by name", Entry{Caps: Relay}, Allow{Peers: []peer.ID{p}}, false},
		{"a guest of this service", Entry{Caps: Guest, Only: here}, members, true},
		{"a guest of another machine's", Entry{Caps: Guest, Only: there}, members, false},
		{"a guest of another service, by name", Entry{Caps: Guest, Only: []Grant{{"web", self}}}, Allow{Members: true, Peers: []peer.ID{p}}, false},
		{"a guest where an explicit list is", Entry{Caps: Guest, Only: here}, Allow{Peers: []peer.ID{other}}, false},
		{"a guest who is denied", Entry{Caps: Guest, Only: here}, Allow{Members: true, Deny: []peer.ID{p}}, false},
		{"a guest of nothing", Entry{Caps: Guest}, members, false},
		{"an expired member", Entry{Caps: Member, Expires: t0}, members, false},
		{"a member who expires in a moment", Entry{Caps: Member, Expires: t0.Add(time.Millisecond)}, members, true},
		{"nothing at all", Entry{}, members, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.entry.Peer, c.entry.Name = p, "p"
			s := &Sealed{Roster: &Roster{Owner: owner, Entries: []Entry{{Peer: owner, Name: "owner"}, c.entry}}}
			err := Authorize(s, t0, p, self, "nas", c.allow)
			var denied *DeniedError
			if c.ok && err != nil || !c.ok && (!errors.As(err, &denied) || denied.Reason == "") {
				t.Fatalf("got %v", err)
			}
		})
	}
	s := &Sealed{Roster: &Roster{Entries: []Entry{{Peer: p, Name: "p", Caps: Member, Expires: t0.Add(time.Hour)}}, Issued: t0.Add(2 * time.Hour)}}
	for name, err := range map[string]error{
		"a stranger":            Authorize(s, t0, other, self, "nas", Allow{Members: true, Peers: []peer.ID{other}}),
		"no roster":             Authorize(nil, t0, p, self, "nas", members),
		"no service":            Authorize(s, t0, p, self, "", members),
		"a clock set back":      Authorize(s, t0, p, self, "nas", members),
		"an admin's expired":    AuthorizeAdmin(s, t0, p),
		"an admin's stranger":   AuthorizeAdmin(s, t0, other),
		"an admin's no roster":  AuthorizeAdmin(nil, t0, p),
		"a roster without text": Authorize(&Sealed{}, t0, p, self, "nas", members),
	} {
		if err == nil {
			t.Errorf("%s was let in", name)
		}
	}
}

func TestAllowWordsAreResolvedWhenWritten(t *testing.T) {
	r, _ := sampleRoster(t)
	nas := r.Services["nas"]
	_, stranger := testKey(t, "stranger")
	a, err := ParseAllow([]string{"members", "nas-box", "tag:ops", stranger.String(), "!phone", "nas-box"}, r)
	must(t, err)
	want := "members,tag:ops," + nas.String() + "," + stranger.String() + ",!" + r.Entries[2].Peer.String()
	if a.String() != want {
		t.Fatalf("got  %s\nwant %s", a, want)
	}
	again, err := ParseAllow(a.Words(), nil)
	must(t, err)
	if again.String() != want {
		t.Fatalf("read back as %s", again)
	}
	for _, word := range []string{"", "nobody", "nas", "tag:", "tag:a b", "!", "nas.nas-box", "Members", "12D3Koo"} {
		if a, err := ParseAllow([]string{"members", word}, r); err == nil || a.Members {
			t.Errorf("%q: got %s, %v", word, a, err)
		}
	}
}

func TestPinnedNameMayNotMeanAnother(t *testing.T) {
	r, _ := sampleRoster(t)
	path := filepath.Join(t.TempDir(), "known")
	k, err := OpenKnown(path)
	must(t, err)
	_, old := testKey(t, "old")
	_, fresh := testKey(t, "fresh")
	must(t, k.Pin("nas", old, r))
	must(t, k.Pin("nas.nas-box", old, r))
	must(t, k.Pin("nas", old, r))
	k, err = OpenKnown(path)
	must(t, err)
	var changed *IdentityChangedError
	if err := k.Pin("nas", fresh, r); !errors.As(err, &changed) || changed.Was != old || changed.Now != fresh || !strings.Contains(err.Error(), "fwd trust nas") {
		t.Fatalf("got %v", err)
	}
	must(t, k.Trust("nas", fresh, r))
	must(t, k.Pin("nas", fresh, r))
	if k.Pin("a b", old, r) == nil || k.Pin("", old, r) == nil || k.Pin("x\ny", old, r) == nil {
		t.Fatal("a bad name was pinned")
	}
}

func TestLastGoodAddressesAreKept(t *testing.T) {
	r, _ := sampleRoster(t)
	path := filepath.Join(t.TempDir(), "known")
	k, err := OpenKnown(path)
	must(t, err)
	_, p := testKey(t, "p")
	want := addrs(t, "/ip4/192.0.2.1/udp/4001/quic-v1", "/ip6/2001:db8::1/tcp/4001")
	must(t, k.SetAddrs(p, want))
	k.write = fullDisk
	must(t, k.SetAddrs(p, want)) // nothing new, nothing written
	wantErr(t, k.SetAddrs(p, want[:1]), errDisk)
	wantErr(t, k.Pin("nas", p, r), errDisk)
	if got := k.Addrs(p); len(got) != 2 {
		t.Fatal("what is not on disk counts")
	}
	k, err = OpenKnown(path)
	must(t, err)
	if got := k.Addrs(p); len(got) != 2 || !got[0].Equal(want[0]) || !got[1].Equal(want[1]) {
		t.Fatalf("got %v", got)
	}
	must(t, k.SetAddrs(p, nil))
	if len(k.Addrs(p)) != 0 {
		t.Fatal("not forgotten")
	}
}

func TestDamagedKnownFileIsNamedWithItsLine(t *testing.T) {
	_, p := testKey(t, "p")
	for _, line := range []string{"pin nas", "pin nas " + p.String()[1:], "addr " + p.String(), "addr " + p.String() + " /ip4/x", "hello", "pin a/b " + p.String()} {
		path := filepath.Join(t.TempDir(), "known")
		must(t, os.WriteFile(path, []byte("# a comment\n\n"+line+"\n"), 0o600))
		_, err := OpenKnown(path)
		var damaged *DamagedError
		if !errors.As(err, &damaged) || !strings.Contains(err.Error(), "line 3") {
			t.Errorf("%q: got %v", line, err)
		}
	}
}

func TestDeniesReadBackAndNothingHalfReadIsTaken(t *testing.T) {
	r, _ := sampleRoster(t)
	words := []string{"members", "tag:ops", "!members", "!tag:dev", "!nas-box"}
	a, err := ParseAllow(words, r)
	must(t, err)
	again, err := ParseAllow(a.Words(), nil)
	must(t, err)
	if a.String() != again.String() || !a.DenyMembers || len(a.DenyTags) != 1 || len(a.Deny) != 1 {
		t.Fatalf("%v read back as %v", a, again)
	}
	for _, bad := range []string{"!", "!!nas-box", "!tag:", "tag:!x", "!tag:tag:x", "!nobody"} {
		if _, err := ParseAllow([]string{"members", bad}, r); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestALaneIsOnlyForWhoMayUseSomethingHere(t *testing.T) {
	_, self := testKey(t, "nas-box")
	_, other := testKey(t, "other-box")
	_, p := testKey(t, "p")
	for _, c := range []struct {
		name  string
		entry Entry
		ok    bool
	}{
		{"a member", Entry{Caps: Member}, true},
		{"a guest of this machine", Entry{Caps: Guest, Only: []Grant{{"web", other}, {"nas", self}}}, true},
		{"a guest of another machine", Entry{Caps: Guest, Only: []Grant{{"nas", other}}}, false},
		{"a guest of nothing", Entry{Caps: Guest}, false},
		{"a device", Entry{Caps: Device}, false},
		{"a relay", Entry{Caps: Relay}, false},
		{"an expired member", Entry{Caps: Member, Expires: t0}, false},
	} {
		c.entry.Peer, c.entry.Name = p, "p"
		s := &Sealed{Roster: &Roster{Entries: []Entry{c.entry}}}
		if err := AuthorizeLane(s, t0, p, self); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if AuthorizeLane(nil, t0, p, self) == nil || AuthorizeLane(&Sealed{Roster: &Roster{}}, t0, p, self) == nil {
		t.Error("a stranger, or anybody without a roster, was let in")
	}
}
