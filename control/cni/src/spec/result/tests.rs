use serde_json::json;

use super::*;

fn attached() -> Attached {
    let address = |address: &str, gateway: &str| PodAddress {
        address: address.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
    };
    let route = |dst: &str, gw: &str| Route { dst: dst.parse().unwrap(), gw: Some(gw.parse().unwrap()) };
    Attached {
        host_ifname: "ptl0123456789".into(),
        host_mac: "02:00:00:00:00:01".parse().unwrap(),
        pod_mac: "02:00:00:00:00:0a".parse().unwrap(),
        mtu: 1500,
        addresses: vec![address("10.0.0.5/32", "169.254.1.1"), address("fd00::5/128", "fe80::1")],
        routes: vec![route("0.0.0.0/0", "169.254.1.1"), route("::/0", "fe80::1")],
    }
}

fn result(version: Version) -> Value {
    attached().success("eth0", "/run/netns/x").to_value(version)
}

#[test]
fn the_newest_version_has_every_field() {
    assert_eq!(
        result(Version::V1_1_0),
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "ptl0123456789", "mac": "02:00:00:00:00:01", "mtu": 1500},
                {"name": "eth0", "mac": "02:00:00:00:00:0a", "mtu": 1500, "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"interface": 1, "address": "10.0.0.5/32", "gateway": "169.254.1.1"},
                {"interface": 1, "address": "fd00::5/128", "gateway": "fe80::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
            "dns": {},
        })
    );
}

#[test]
fn older_versions_have_the_shape_of_their_time() {
    for version in [Version::V0_3_1, Version::V0_4_0] {
        let result = result(version);
        assert_eq!((&result["ips"][0]["version"], &result["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert_eq!(result["interfaces"][1].get("mtu"), None);
    }
    let one = result(Version::V1_0_0);
    assert_eq!((one["ips"][0].get("version"), one["interfaces"][1].get("mtu")), (None, None));
}

#[test]
fn check_accepts_what_add_had_answered_in_every_version() {
    for version in Version::ALL {
        let previous = Success::parse(&result(version)).unwrap();
        assert_eq!(attached().check(&previous, "eth0"), Ok(()), "{version:?}");
    }
}

#[test]
fn check_overlooks_what_other_plugins_added() {
    let mut previous = result(Version::V1_1_0);
    previous["interfaces"].as_array_mut().unwrap().push(json!({"name": "ifb0", "pciID": "x"}));
    previous["ips"].as_array_mut().unwrap().push(json!({"interface": 2, "address": "192.0.2.1/24"}));
    previous["routes"].as_array_mut().unwrap().push(json!({"dst": "192.0.2.0/24", "gw": "192.0.2.9"}));
    assert_eq!(attached().check(&Success::parse(&previous).unwrap(), "eth0"), Ok(()));
}

#[test]
fn check_names_each_difference() {
    let previous = Success::parse(&result(Version::V1_1_0)).unwrap();
    type Change = fn(&mut Attached);
    let cases: [(Change, &str); 6] = [
        (|now| now.pod_mac = "02:00:00:00:00:0b".parse().unwrap(), "MAC address is 02:00:00:00:00:0b"),
        (|now| now.mtu = 1400, "MTU is 1400, it was 1500"),
        (|now| now.host_ifname = "ptl1".into(), "host interface ptl1"),
        (|now| now.addresses.truncate(1), "fd00::5/128 is missing"),
        (|now| now.addresses[0].address = "10.0.0.6/32".parse().unwrap(), "10.0.0.6/32 is not in prevResult"),
        (|now| now.routes.clear(), "the route to 0.0.0.0/0 is missing"),
    ];
    for (change, expected) in cases {
        let mut now = attached();
        change(&mut now);
        let error = now.check(&previous, "eth0").unwrap_err();
        assert_eq!(error.code, Code::CheckFailed);
        assert!(error.details.contains(expected), "{}", error.details);
    }
    let error = attached().check(&previous, "eth1").unwrap_err();
    assert!(error.details.contains("no interface eth1"), "{}", error.details);
}

#[test]
fn only_unicast_mac_addresses_exist() {
    for text in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:01:02",
        "2:0:0:0:0:1",
        "01:00:00:00:00:01",
        "00:00:00:00:00:00",
        "+2:00:00:00:00:01",
    ] {
        assert_eq!(text.parse::<Mac>(), Err(InvalidMac), "{text}");
    }
    assert_eq!("02:0A:00:00:00:ff".parse::<Mac>().unwrap().to_string(), "02:0a:00:00:00:ff");
}
