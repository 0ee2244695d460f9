package daemon

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// Scripts read what docs/json.md says: every field that there is.
func TestEveryJSONFieldIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(in reflect.Type) {
		for in.Kind() == reflect.Pointer || in.Kind() == reflect.Slice {
			in = in.Elem()
		}
		if in.Kind() != reflect.Struct || seen[in] || !strings.HasPrefix(in.PkgPath(), "fwd/") {
			return
		}
		seen[in] = true
		for i := range in.NumField() {
			f := in.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && !strings.Contains(string(page), "`"+name+"`") && !strings.Contains(string(page), `"`+name+`"`) {
				t.Errorf("%s.%s is not in docs/json.md: %s", in.Name(), f.Name, name)
			}
			walk(f.Type)
		}
	}
	for _, v := range []any{Event{}, Status{}, LsEntry{}, PeerEntry{}, InviteEntry{}, NetworkEntry{}, Joined{}, Speed{}} {
		walk(reflect.TypeOf(v))
	}
}

// And every code of a failure.
func TestEveryFailuresCodeIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	written := regexp.MustCompile(`(?:fail\(Exit\w+, |Code\w*(?::| =) *)"([a-z-]+)"`)
	found := 0
	for _, folder := range []string{".", "../../cmd/fwd"} {
		files, err := filepath.Glob(folder + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range written.FindAllStringSubmatch(string(source), -1) {
				found++
				if !strings.Contains(string(page), "`"+m[1]+"`") {
					t.Errorf("%s: the code %s is not in docs/json.md", file, m[1])
				}
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d codes were found; are they read right?", found)
	}
}
