package identity

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// sampleRoster has one of everything.
func sampleRoster(t testing.TB) (*Roster, crypto.PrivKey) {
	key, network := testKey(t, "network")
	_, vps := testKey(t, "vps")
	_, nas := testKey(t, "nas-box")
	_, guest := testKey(t, "guest")
	return &Roster{
		Network: NetworkID(network.String()), Name: "home", Owner: vps, Term: 1, Epoch: 7, Issued: t0,
		DiscoveryKey:     bytes.Repeat([]byte{1}, 32),
		OldDiscoveryKeys: [][]byte{bytes.Repeat([]byte{2}, 32)},
		Entries: []Entry{
			{Peer: vps, Name: "vps", Caps: Relay | Use},
			{Peer: nas, Name: "nas-box", Caps: Member, Tags: []string{"ops"}},
			{Peer: guest, Name: "phone", Caps: Guest, Only: []Grant{{"nas", nas}}, Expires: t0.Add(time.Hour)},
		},
		Relays:   []RelayInfo{{Peer: vps, Addrs: addrs(t, "/ip4/192.0.2.1/udp/4001/quic-v1")}},
		Services: map[string]peer.ID{"nas": nas},
	}, key
}

func TestSealedRosterReadsBackTheSame(t *testing.T) {
	r, key := sampleRoster(t)
	s, err := Seal(r, key)
	must(t, err)
	again, err := Open(s.Envelope, r.Network)
	must(t, err)
	if !reflect.DeepEqual(again.Roster, r) {
		t.Fatalf("got  %+v\nwant %+v", again.Roster, r)
	}
}

func TestFlippedBitAtEachOffsetIsRefused(t *testing.T) {
	r, key := sampleRoster(t)
	s, err := Seal(r, key)
	must(t, err)
	for i := range s.Envelope {
		bad := bytes.Clone(s.Envelope)
		bad[i] ^= 1 << (i % 8)
		if _, err := Open(bad, r.Network); err == nil {
			t.Fatalf("byte %d of %d flipped, and still opened", i, len(bad))
		}
		if _, err := Open(bad, ""); err == nil {
			t.Fatalf("byte %d of %d flipped, and still opened by a joiner", i, len(bad))
		}
	}
	for _, tail := range [][]byte{{0}, {0x7a, 0}, s.Envelope} { // an unknown field, a repetition
		if _, err := Open(append(bytes.Clone(s.Envelope), tail...), r.Network); err == nil {
			t.Fatalf("opened with %x after its end", tail[:1])
		}
	}
}

func TestOtherKeyDomainOrSizeIsRefused(t *testing.T) {
	r, key := sampleRoster(t)
	otherKey, other := testKey(t, "other network")
	payload, err := formatRoster(r)
	must(t, err)

	forged, err := sealBytes(rosterDomain, payload, otherKey)
	must(t, err)
	_, err = Open(forged, r.Network)
	wantErr(t, err, ErrOtherNetwork)
	_, err = Open(forged, "") // names a network whose key did not sign
	wantErr(t, err, ErrSeal)
	_, err = Open(forged, NetworkID(other.String()))
	wantErr(t, err, ErrSeal)

	swapped, err := sealBytes(heartbeatDomain, payload, key)
	must(t, err)
	_, err = Open(swapped, r.Network)
	wantErr(t, err, ErrSeal)

	_, err = Open(make([]byte, MaxRoster+1), r.Network)
	wantErr(t, err, ErrTooLarge)
}

func TestRosterThatBreaksARuleIsNotSealed(t *testing.T) {
	_, stranger := testKey(t, "stranger")
	cases := map[string]func(*Roster){
		"no owner among the peers":   func(r *Roster) { r.Owner = stranger },
		"epoch 0":                    func(r *Roster) { r.Epoch = 0 },
		"term 0":                     func(r *Roster) { r.Term = 0 },
		"a peer twice":               func(r *Roster) { r.Entries[1].Peer = r.Entries[0].Peer },
		"a name twice":               func(r *Roster) { r.Entries[1].Name = "vps" },
		"a name with a dot":          func(r *Roster) { r.Entries[1].Name = "nas.box" },
		"a machine called members":   func(r *Roster) { r.Entries[1].Name = "members" },
		"no machine name":            func(r *Roster) { r.Entries[1].Name = "" },
		"a tag in capitals":          func(r *Roster) { r.Entries[1].Tags = []string{"Ops"} },
		"too many tags":              func(r *Roster) { r.Entries[1].Tags = slices.Repeat([]string{"x"}, maxTags+1) },
		"too many grants":            func(r *Roster) { r.Entries[2].Only = slices.Repeat(r.Entries[2].Only, maxOnly+1) },
		"an unknown capability":      func(r *Roster) { r.Entries[1].Caps = 1 << 7 },
		"a service of a stranger":    func(r *Roster) { r.Services["x"] = stranger },
		"a service name with spaces": func(r *Roster) { r.Services["a b"] = r.Owner },
		"a relay that is a stranger": func(r *Roster) { r.Relays[0].Peer = stranger },
		"too many addresses":         func(r *Roster) { r.Relays[0].Addrs = slices.Repeat(r.Relays[0].Addrs, MaxAddrs+1) },
		"a short discovery key":      func(r *Roster) { r.DiscoveryKey = r.DiscoveryKey[:31] },
		"too many old keys":          func(r *Roster) { r.OldDiscoveryKeys = slices.Repeat(r.OldDiscoveryKeys, 9) },
		"a network with no name":     func(r *Roster) { r.Name = "" },
		"a slice without its guest":  func(r *Roster) { r.For = stranger },
		"another network's ID":       func(r *Roster) { r.Network = NetworkID(stranger.String()) },
		"too many peers":             func(r *Roster) { r.Entries = slices.Repeat(r.Entries, maxEntries) },
		"a time before 1970":         func(r *Roster) { r.Issued = time.Unix(-1, 0) },
		"an expiry before 1970":      func(r *Roster) { r.Entries[1].Expires = time.Unix(-1, 0) },
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			r, key := sampleRoster(t)
			spoil(r)
			if _, err := Seal(r, key); err == nil {
				t.Fatal("it was sealed")
			}
		})
	}
}

func TestNamesResolveInShortAndLongForm(t *testing.T) {
	r, _ := sampleRoster(t)
	nas := r.Services["nas"]
	for name, want := range map[string]Grant{
		"nas":             {"nas", nas},
		"NAS":             {"nas", nas},
		"nas.fwd":         {"nas", nas},
		"nas.nas-box":     {"nas", nas},
		"nas.nas-box.fwd": {"nas", nas},
		"ssh.nas-box":     {"ssh", nas}, // a default name has the long form only
		"ssh.vps":         {"ssh", r.Owner},
	} {
		service, p, err := r.Resolve(name)
		if err != nil || service != want.Service || p != want.Peer {
			t.Errorf("%q: got %s at %s, %v", name, service, p, err)
		}
	}
	for _, name := range []string{"", ".", "ssh", "fwd", ".fwd", "nas.", ".nas-box", "nas.nas-box.vps", "nas.nobody", "a b", "../x"} {
		_, _, err := r.Resolve(name)
		wantErr(t, err, ErrUnknownName)
	}
	_, stranger := testKey(t, "stranger")
	resolve := func(name string, machine, any peer.ID) {
		if p, err := r.ResolvePeer(name); p != machine || p == "" && !errors.Is(err, ErrUnknownName) {
			t.Errorf("machine %q: got %q, %v", name, p, err)
		}
		if p, err := r.ResolveAny(name); p != any || p == "" && !errors.Is(err, ErrUnknownName) {
			t.Errorf("machine or service %q: got %q, %v", name, p, err)
		}
	}
	for _, name := range []string{"nas-box", "Nas-Box.fwd", nas.String()} {
		resolve(name, nas, nas)
	}
	resolve("nas", "", nas)
	resolve("ssh.vps", "", r.Owner)
	resolve("nobody", "", "")
	resolve(stranger.String(), "", "")
}

func TestRoleSumsUpCapabilities(t *testing.T) {
	r, _ := sampleRoster(t)
	grant := []Grant{{"nas", r.Owner}}
	for _, c := range []struct {
		e    Entry
		want string
	}{
		{Entry{Caps: Member}, "member"},
		{Entry{Caps: Device}, "device"},
		{Entry{Caps: Guest, Only: grant}, "guest"},
		{Entry{Caps: Guest}, "guest"},
		{Entry{Caps: Member, Only: grant}, "guest"},
		{Entry{Caps: Relay}, "relay"},
		{Entry{Caps: Relay | Member}, "relay"},
		{Entry{Caps: Member | Admin}, "admin"},
		{Entry{}, "none"},
	} {
		if got := c.e.Role(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.e.Caps, got, c.want)
		}
	}
	if got := r.Role(r.Owner); got != "owner" {
		t.Errorf("the owner is %s", got)
	}
}

func TestCapabilitiesReadBack(t *testing.T) {
	for c := Capability(0); c < 1<<len(capabilityWords); c++ {
		got, err := ParseCapability(c.String())
		if err != nil || got != c {
			t.Errorf("%s: got %v, %v", c, got, err)
		}
	}
	for _, s := range []string{"", "root", "use, expose", "use,,expose", "USE"} {
		if _, err := ParseCapability(s); err == nil {
			t.Errorf("%q was read", s)
		}
	}
}

func TestTakenNameGetsANumber(t *testing.T) {
	long := strings.Repeat("a", maxName)
	taken := map[string]bool{"nas": true, "nas-2": true, long: true}
	is := func(s string) bool { return taken[s] }
	for want, got := range map[string]string{
		"free":                         freeName("free", is),
		"nas-3":                        freeName("nas", is),
		strings.Repeat("a", 61) + "-2": freeName(long, is),
		"anna-s-macbook":               CleanName("Anna's  MacBook.local"),
		"machine":                      CleanName("…"),
		"caf":                          CleanName("-Café-"),
		strings.Repeat("b", maxName):   CleanName(strings.Repeat("b", 200)),
		"members-host":                 CleanName("members host"),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		must(t, CheckName(got))
	}
	if CleanName("members") != "machine" {
		t.Error("a machine may not be called members")
	}
}

func TestGuestSeesOnlyItsSlice(t *testing.T) {
	r, key := sampleRoster(t)
	_, secret := testKey(t, "secret")
	r.Entries = append(r.Entries, Entry{Peer: secret, Name: "secret", Caps: Member})
	r.Services["payroll"] = secret
	made, err := sealSlices(r, key)
	must(t, err)
	guest := r.Entries[2]
	s := made[guest.Peer]
	if len(made) != 1 || s == nil {
		t.Fatalf("slices: %v", made)
	}
	if bytes.Contains(s.Envelope, []byte("secret")) || bytes.Contains(s.Envelope, []byte("payroll")) || bytes.Contains(s.Envelope, []byte(secret.String())) || bytes.Contains(s.Envelope, []byte("ops")) {
		t.Fatalf("the slice tells too much: %s", s.payload)
	}
	if _, p, err := s.Resolve("nas"); err != nil || p != r.Services["nas"] {
		t.Fatalf("the guest cannot find its service: %v", err)
	}
	if len(s.Relays) != 1 || s.Role(guest.Peer) != "guest" {
		t.Fatalf("got %+v", s.Roster)
	}
}
