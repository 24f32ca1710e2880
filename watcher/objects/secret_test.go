package objects

import (
	"strings"
	"testing"
)

// TestSecretsAreNotQuoted breaks Secrets in every way that makes an error, with data that no error may show.
func TestSecretsAreNotQuoted(t *testing.T) {
	const head = "apiVersion: v1\nkind: Secret\nmetadata: {name: tls, namespace: shop}\ntype: kubernetes.io/tls\n"
	for _, tt := range []struct{ name, in, want string }{
		{"a number", head + "stringData: {tls.key: 12345678}\n",
			"error f.yaml:1: Secret tls: stringData must be of type string, not number: quote it if it is a string\n"},
		{"a list", head + "data: {tls.key: [12345678]}\n",
			"error f.yaml:1: Secret tls: data must be of type uint8, not number: quote it if it is a string\n"},
		{"not base64", head + "data: {tls.key: 12345678-}\n", "error f.yaml:1: Secret tls: data must be base64: encode it, or use stringData\n"},
		{"in JSON", `{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "stringData": {"tls.key": 12345678}}`,
			"error f.yaml:1: Secret tls: stringData must be of type string, not number: quote it if it is a string\n"},
		{"YAML takes it for an alias", head + "stringData:\n  password: *12345678\n",
			"error f.yaml:1: not YAML: check quotes and indentation; a Secret is not quoted here\n"},
		{"broken YAML in a List", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Secret\n  data: {a: 12345678, a: 12345678}\n",
			"error f.yaml:6: not YAML: check quotes and indentation; a Secret is not quoted here\n"},
		{"broken JSON", "{\"kind\": \"Secret\",\n\"data\": {\"a\": 12345678}\n",
			"error f.yaml:2: not YAML: check quotes and indentation; a Secret is not quoted here\n"},
		{"an unknown field", head + "tls.key: 12345678\n",
			"Secret shop/tls\nwarning f.yaml:1: Secret shop/tls: unknown field \"tls.key\": ignored, check its spelling\n"},
		{"another type", "apiVersion: v1\nkind: Secret\nmetadata: {name: x, namespace: shop}\nstringData: {password: \"12345678\"}\n",
			"skipped f.yaml:1: v1 Secret shop/x\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := summary(Parse("f.yaml", []byte(tt.in)))
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			if strings.Contains(got, "12345678") {
				t.Errorf("the Secret is quoted: %s", got)
			}
		})
	}
}

// TestSecretData has what the API server makes of stringData, and only what a certificate needs.
func TestSecretData(t *testing.T) {
	m := Parse("f.yaml", []byte(`apiVersion: v1
kind: Secret
metadata: {name: tls, namespace: shop}
type: kubernetes.io/tls
data: {tls.crt: Y2VydA==, tls.key: b2xk, ca.crt: Y2E=}
stringData: {tls.key: new}
`))
	if len(m.Objects.Secrets) != 1 {
		t.Fatal(summary(m))
	}
	s := m.Objects.Secrets[0]
	if string(s.Data["tls.crt"]) != "cert" || string(s.Data["tls.key"]) != "new" || len(s.Data) != 2 || s.StringData != nil {
		t.Errorf("got %s, %s", s.Data, s.StringData)
	}
}
