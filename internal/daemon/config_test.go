package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"fwd/identity"
)

// The example is read as it stands, and shows every key there is.
func TestTheExampleIsRightAndWhole(t *testing.T) {
	const file = "../../docs/fwd.toml"
	c, _, err := readConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(file)
	var unseen func(t reflect.Type, v reflect.Value, at string) []string
	unseen = func(typ reflect.Type, v reflect.Value, at string) (list []string) {
		switch {
		case typ.Kind() == reflect.Pointer:
			return unseen(typ.Elem(), v.Elem(), at)
		case typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct:
			return unseen(typ.Elem(), v.Index(0), at)
		case typ.Kind() != reflect.Struct, typ.NumField() > 0 && typ.Field(0).Tag == "":
			return nil
		}
		for i := range typ.NumField() {
			key := typ.Field(i).Tag.Get("toml")
			if !strings.Contains(string(text), "\n"+key+" = ") && !strings.Contains(string(text), "["+key+"]") {
				list = append(list, at+key)
			}
			list = append(list, unseen(typ.Field(i).Type, v.Field(i), at+key+".")...)
		}
		return list
	}
	if missing := unseen(reflect.TypeOf(*c), reflect.ValueOf(*c), ""); len(missing) > 0 {
		t.Errorf("docs/fwd.toml does not show %v", missing)
	}
	if len(c.Expose) != 2 || len(c.Connect) != 2 || c.Relay == nil || c.Limits.Hold.Duration != 24*time.Hour || c.Limits.Memory.bytes != 256<<20 {
		t.Errorf("read as %+v", c)
	}
	if want := filepath.Join(filepath.Dir(file), "invite"); c.InviteFile != want {
		t.Errorf("invite_file is %q, want %q", c.InviteFile, want)
	}
	if got := c.Relay.limits(); got.PerPeer != 0 || got.Total != 50e6 || got.Monthly != 1e12 {
		t.Errorf("the relay's limits are %+v", got)
	}
}

// Defaults are those of the commands; docs/fwd.toml states them.
func TestAnEmptyFileIsTheDefaults(t *testing.T) {
	c, err := parseConfig(nil)
	if err != nil || c.Log.Level.Level != slog.LevelInfo || c.Relay != nil {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestAMistakeIsToldWithItsLine(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"\nnaem = 'x'", `fwd.toml:2: there is no key "naem"`},
		{"[log]\nlevel = 'info'\ncolour = true\n[colours]\nred = 1", `fwd.toml:3: there is no key "log.colour"; fwd.toml:4: there is no key "colours"`},
		{"[[expose]]\ntarget = '22'\n[[expose]]\ntraget = '80'", `fwd.toml:4: there is no key "expose.traget"`},
		{"[[expose]]\n\ntarget = '70000'", "fwd.toml:3: "},
		{"[[expose]]\ntarget = '22'\nname = 'Not Good'", "fwd.toml:3: "},
		{"[[connect]]\nservice = 'web'\nlocal = '-'", "fwd.toml:3: "},
		{"[[connect]]\nservice = 'web'\nlocal = 'unix:here'", "fwd.toml:3: "},
		{"[[connect]]\nservice = 'a.b.c'", "fwd.toml:2: "},
		{"[[connect]]\nservice = 'web'\npath = 'sideways'", "fwd.toml:3: "},
		{"[log]\nlevel = 'loud'", "fwd.toml:2: "},
		{"[log]\nlevel = 'loud'\n[limits]\nhold = 'long'\nmemory = '256MiB'\n[[expose]]\ntarget = '70000'\ntraget = '1'", `fwd.toml:2: log level "loud": debug, info, warn or error; fwd.toml:4: "long": `},
		{"[relay]\nlisten = [\n'x',\n'4001',\n'y']\n[log]\nlevel = 'loud'", "fwd.toml:3: "},
		{"[[expose]]\nname='x'\n[[expose]]\ntarget='22'\n[[expose]]\ntarget='host:22'\n[[connect]]\nlocal='80'", `fwd.toml: an [[expose]] has no target; fwd.toml: [[expose]] "ssh" stands there twice; fwd.toml: a [[connect]] has no service`},
		{"[log]\nformat = 'xml'", "fwd.toml:2: "},
		{"[limits]\nhold = 'long'", `fwd.toml:2: "long": a duration is written 30s, 10m, 2h or 7d`},
		{"[limits]\nmemory = '1 elephant'", "fwd.toml:2: "},
		{"[relay]\nlisten = ['4001', 'x']", "fwd.toml:2: "},
		{"[relay]\nannounce = ['not a host']", "fwd.toml:2: "},
		{"name = 1979-05-27", "fwd.toml:1: "},
		{"name = ", "fwd.toml:1: "},
		{"[[expose]]\nname = 'x'", "fwd.toml: an [[expose]] has no target"},
		{"[[expose]]\ntarget='22'\n[[expose]]\ntarget='host:22'", `fwd.toml: [[expose]] "ssh" stands there twice`},
		{"[[connect]]\nlocal = '80'", "fwd.toml: a [[connect]] has no service"},
		{"[[connect]]\nservice='a'\nlocal='80'\n[[connect]]\nservice='b'\nlocal='127.0.0.1:80'", "fwd.toml: two [[connect]] want 127.0.0.1:80"},
		{"[[connect]]\nservice='a'\n[[connect]]\nservice='a'", `fwd.toml: [[connect]] "a" stands there twice`},
		{"[[expose]]\ntarget='22'\nhold='2d'", "fwd.toml: the [[expose]] of 22 wants hold 48h, more than [limits] has: 24h"},
		{"[limits]\nhold='1h'\n[[expose]]\ntarget='22'\nhold='2h'", "fwd.toml: the [[expose]] of 22 wants hold 2h, more than [limits] has: 1h"},
		{"[relay]\nrate_total = '1kB'", "fwd.toml: "},
	} {
		_, err := parseConfig([]byte(c.text))
		if err == nil {
			t.Errorf("%q is taken", c.text)
			continue
		}
		if got := located("fwd.toml", err); !strings.HasPrefix(got, c.want) {
			t.Errorf("%q:\n got %s\nwant %s", c.text, got, c.want)
		}
	}
}

// Who mends a file wants to know all that is wrong with it, and nothing that is not.
func TestAllMistakesAreToldAtOnce(t *testing.T) {
	_, err := parseConfig([]byte("[log]\nlevel = 'loud'\n[limits]\nhold = 'long'\n[[expose]]\ntarget = '70000'\ntraget = '1'\n[relay]\nlisten = [\n'x',\n'4001',\n]\nannounce = ['not a host']\n"))
	var lines []string
	for l := range strings.Lines(err.Error()) {
		line, _, _ := strings.Cut(l, ":")
		lines = append(lines, line)
	}
	if got := strings.Join(lines, " "); got != "2 4 6 7 10 13" {
		t.Errorf("lines %s:\n%v", got, err)
	}
	// Behind what is no TOML nothing can be told.
	if _, err := parseConfig([]byte("[log]\nlevel = 'loud'\nname = \n")); err == nil || strings.Count(err.Error(), "\n") > 0 {
		t.Errorf("got %v", err)
	}
}

func TestConnectsOfOneMachineByOppositePathsAreAMistake(t *testing.T) {
	home, attic := newHome(t), newHome(t)
	network := newOrphans(t, time.Hour)
	network.admit(attic, "attic", identity.InviteOptions{})
	far, err := peerOf(attic)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mail", "print"} {
		if err := network.owner.ClaimService(far, name, network.left); err != nil {
			t.Fatal(err)
		}
	}
	network.admit(home, "laptop", identity.InviteOptions{})
	check := func(first, second, path string) error {
		write(t, home.Config, "[[connect]]\nservice = %q\nlocal = '1'\npath = 'direct'\n[[connect]]\nservice = %q\nlocal = '2'\npath = %q\n", first, second, path)
		_, err := CheckConfig(home, "")
		return err
	}
	for _, c := range [][2]string{{"nas", "nas"}, {"nas.attic", "web.attic.fwd"}, {"mail", "print"}, {"print", "web.attic"}} {
		f := failureOf(check(c[0], c[1], "relay"))
		if f.Exit != ExitUsage || !strings.Contains(f.What, "wants path direct") || !strings.Contains(f.What, "share its path") {
			t.Errorf("%v: %+v", c, f)
		}
	}
	for _, c := range [][3]string{{"nas", "web", "relay"}, {"nas.attic", "nas.cellar", "relay"}, {"nas", "nas", "auto"}, {"nas", "nas", "direct"}} {
		if err := check(c[0], c[1], c[2]); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
}

func TestNumbersNeedNoQuotes(t *testing.T) {
	c, err := parseConfig([]byte("[[expose]]\ntarget = 22\n[[connect]]\nservice = 'web'\nlocal = 8080\n[relay]\nlisten = [4001]\nmonthly = 0"))
	if err != nil || c.Expose[0].Target.text != "22" || c.Connect[0].Local.text != "8080" || c.Relay.Listen[0].text != "4001" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "500kB": 500e3, "1.5MiB": 3 << 19, "20 MB": 20e6, "7B": 7, "2TB": 2e12} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "B", "1", "-1MB", "1e9MB", "NaNMB", "99999999999TB", "1mb"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}

// What is read can be run: each wish has a key of its own, and reading the same
// text again changes nothing.
func FuzzParseConfig(f *testing.F) {
	example, err := os.ReadFile("../../docs/fwd.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Add([]byte("[[expose]]\ntarget = 22\n[[connect]]\nservice = 'web'\nlocal = 8080"))
	f.Add([]byte("[relay]\nlisten = [4001]\nmonthly = '1TB'"))
	f.Add([]byte("expose = [{target='unix:/x', allow=['tag:a']}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig(text)
		if err != nil {
			if located("fwd.toml", err) == "" {
				t.Error("a mistake without words")
			}
			return
		}
		again, err := parseConfig(text)
		if err != nil || len(restartFor(c, again)) > 0 {
			t.Errorf("read again it is another: %v", err)
		}
		keys := map[string]bool{}
		for i, e := range c.Expose {
			w := exposeWish(e.request(), fromConfig)
			if keys[w.key] || !w.same(exposeWish(again.Expose[i].request(), fromConfig)) {
				t.Errorf("wish %q", w.key)
			}
			keys[w.key] = true
		}
		for i, e := range c.Connect {
			w := connectWish(e.request(), fromConfig)
			if !w.same(connectWish(again.Connect[i].request(), fromConfig)) {
				t.Errorf("wish %q", w.key)
			}
		}
	})
}

func TestAValueOfAnotherKindIsToldInWords(t *testing.T) {
	for text, want := range map[string]string{
		`port = "24817"`:           "1: port wants a number without quotes",
		`strict = "yes"`:           "1: strict wants true or false",
		`announce = "nas.example"`: `1: announce wants a list of texts: ["…"]`,
		"[relay]\nuses = \"1\"":    "2: relay.uses wants a number without quotes",
	} {
		if _, err := parseConfig([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
