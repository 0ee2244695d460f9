package identity

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func sampleInvite(t testing.TB) Invite {
	_, network := testKey(t, "network")
	_, owner := testKey(t, "owner")
	_, relay := testKey(t, "relay")
	i := newInvite(network, owner, relay, addrs(t, "/ip4/192.0.2.1/udp/4001/quic-v1", "/dns4/vps.example/tcp/443/tls/ws"))
	for k := range i.id {
		i.id[k] = byte(k)
	}
	for k := range i.secret {
		i.secret[k] = byte(100 + k)
	}
	return i
}

func TestInviteReadsBackHoweverItIsPasted(t *testing.T) {
	want := sampleInvite(t)
	code := want.String()
	if !strings.HasPrefix(code, "fwd1") || code != strings.ToLower(code) {
		t.Fatalf("got %s", code)
	}
	for _, pasted := range []string{
		code, strings.ToUpper(code), "  " + code + "\r\n", "'" + code + "'", `"` + code + `"`,
		code[:40] + "\n    " + code[40:100] + " " + code[100:],
	} {
		got, err := ParseInvite(pasted)
		if err != nil || got.String() != code {
			t.Errorf("%q: %v", pasted, err)
		}
	}
	if c := want.Contact(); c.ID == want.Owner() || len(c.Addrs) != 2 {
		t.Fatalf("contact %v", c)
	}
}

func TestInviteErrorsSayWhatIsWrong(t *testing.T) {
	code := sampleInvite(t).String()
	for _, s := range []string{"", "nas", "fwd", "fwd1", "hello world", "fwdx" + code[4:], code[4:], strings.Repeat("fwd1", maxInviteText)} {
		_, err := ParseInvite(s)
		wantErr(t, err, ErrNotInvite)
	}
	for k := len("fwd1"); k < len(code); k++ {
		c := byte('a')
		if code[k] == 'a' {
			c = 'b'
		}
		_, err := ParseInvite(code[:k] + string(c) + code[k+1:])
		wantErr(t, err, ErrInviteTypo)
	}
	for _, s := range []string{code[:len(code)-1], code + "a", code + code, "fwd1!" + code[5:], "fwd2" + code[4:]} {
		_, err := ParseInvite(s)
		wantErr(t, err, ErrInviteTypo)
	}
	body := []byte("whatever comes")
	_, err := ParseInvite("fwd2" + inviteBase32.EncodeToString(append(body, checksum('2', body)...)))
	wantErr(t, err, ErrInviteNewer)
	_, err = ParseInvite("fwd1" + inviteBase32.EncodeToString(append(body, checksum('1', body)...)))
	wantErr(t, err, ErrNotInvite)
}

func TestSecretIsShownByStringOnly(t *testing.T) {
	i := sampleInvite(t)
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "invite", i)
	fmt.Fprintf(&log, "%#v", i)
	if strings.Contains(log.String(), i.String()[200:]) || strings.Contains(log.String(), "101, 102") || strings.Contains(log.String(), "0x65, 0x66") {
		t.Fatalf("the log tells the secret: %s", log.String())
	}
}

func TestSecretIsNotOnTheOwnersDisk(t *testing.T) {
	n := newNetwork(t)
	i, err := n.owner.Invite(InviteOptions{}, t0)
	must(t, err)
	data, err := n.owner.ledger.format()
	must(t, err)
	for _, form := range []string{string(i.secret[:]), fmt.Sprintf("%x", i.secret), i.String()} {
		if strings.Contains(string(data), form) {
			t.Fatal("the secret is in the ledger")
		}
	}
	if _, err := parseLedger(data); err != nil {
		t.Fatal(err)
	}
}

func TestInviteOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	n := newNetwork(t)
	_, stranger := testKey(t, "stranger")
	for name, o := range map[string]InviteOptions{
		"negative uses":           {Uses: -1},
		"too many uses":           {Uses: maxUses + 1},
		"negative expiry":         {Expires: -time.Hour},
		"negative access":         {For: -1},
		"guest of nothing":        {Caps: Guest},
		"service at a stranger":   {Only: []Grant{{"nas", stranger}}},
		"bad service":             {Only: []Grant{{"n.as", n.id}}},
		"bad tag":                 {Tags: []string{"a b"}},
		"replaced stranger":       {Replace: stranger},
		"replaced owner":          {Replace: n.id},
		"contact without a key":   {Via: "relay"},
		"more addresses than fit": {Addrs: addrs(t, strings.Split(strings.Repeat("/ip4/192.0.2.1/tcp/1 ", 17)[:17*21-1], " ")...)},
	} {
		if _, err := n.owner.Invite(o, t0); err == nil {
			t.Errorf("%s: an invite was made", name)
		}
	}
}

func TestCancelledInviteLetsNobodyIn(t *testing.T) {
	n := newNetwork(t)
	i, err := n.owner.Invite(InviteOptions{Uses: 5}, t0)
	must(t, err)
	laptop := newMachine(t, "laptop")
	_, _, err = n.use(t, i, laptop, "laptop", t0)
	must(t, err)
	must(t, n.owner.Cancel(i.ID()))
	_, _, err = n.use(t, i, newMachine(t, "other"), "other", t0)
	wantErr(t, err, ErrInviteUsed)
	if list := n.owner.Invites(); len(list) != 1 || len(list[0].Used) != 1 || list[0].Used[0] != laptop.id {
		t.Fatalf("got %+v", list)
	}
	wantErr(t, n.owner.Cancel("0011223344556677"), ErrUnknownName)
}
